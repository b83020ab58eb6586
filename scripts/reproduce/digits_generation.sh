#!/usr/bin/env bash
# README "Figures": the generator on digits, and a class deleted from it. Half an hour on two CPU cores.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.digits_generation "$@"
