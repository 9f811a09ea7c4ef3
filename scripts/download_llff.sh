#!/bin/sh
# Download the forward-facing scenes (nerf_llff_data), all or those named: see --help.
exec "${PYTHON:-python3}" "$(dirname "$0")/download.py" llff "$@"
