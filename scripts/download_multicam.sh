#!/bin/sh
# Make the multiscale Blender scenes, downloading what they are made from: see --help.
exec "${PYTHON:-python3}" "$(dirname "$0")/download.py" multicam "$@"
