#!/usr/bin/env bash
# The regression table of the classification benchmark. Four minutes on two CPU cores.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.digits_regression --split-seeds 3 "$@"
