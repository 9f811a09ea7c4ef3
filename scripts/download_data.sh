#!/bin/sh
# Download every set and make the multiscale one: see --help.
exec "${PYTHON:-python3}" "$(dirname "$0")/download.py" data "$@"
