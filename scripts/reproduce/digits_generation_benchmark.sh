#!/usr/bin/env bash
# README, the benchmark of generators, into the folder given (bench). Thirty-six minutes in two processes.
set -euo pipefail
cd "$(dirname "$0")/../.."
PROCESSES=${PROCESSES:-2} scripts/one_host.sh benchmark \
    --config configs/benchmarks/digits_generation.yaml --out "${1:-bench}"
