#!/usr/bin/env bash
# README, the plot of what grows with what. Two minutes.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.cost_curves "$@"
