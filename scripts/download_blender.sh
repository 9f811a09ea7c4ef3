#!/bin/sh
# Download the Blender scenes (nerf_synthetic), all or those named: see --help.
exec "${PYTHON:-python3}" "$(dirname "$0")/download.py" blender "$@"
