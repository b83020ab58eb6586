#!/usr/bin/env bash
# README, the benchmark of unlearning methods for classifiers, into a folder (bench). A quarter of an hour on one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m gen_unlearn benchmark \
    --config configs/benchmarks/digits_all_methods.yaml --out "${1:-bench}"
