#!/usr/bin/env bash
# README "Scaling out": what several processes gain, worked out and simulated. Some minutes.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.scaling "$@"
