#!/usr/bin/env bash
# README, the benchmark of generators, into the folder given (bench). About half an hour in two processes.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
PROCESSES=${PROCESSES:-2} "$ROOT/scripts/one_host.sh" benchmark \
    --config "$ROOT/configs/benchmarks/digits_generation.yaml" --out "${1:-bench}"
