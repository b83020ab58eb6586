#!/usr/bin/env bash
# README, the benchmark of unlearning methods for classifiers, into a folder (bench). A quarter of an hour on one core.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m gen_unlearn benchmark \
    --config "$ROOT/configs/benchmarks/digits_all_methods.yaml" --out "${1:-bench}"
