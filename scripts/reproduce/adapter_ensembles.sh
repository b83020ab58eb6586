#!/usr/bin/env bash
# README "An ensemble of adapters" and the tables of evaluation/README.md. Half an hour on one core.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
TRAIN=${CIFAR10_TRAIN:?expected the Parquet file of the training images}
TEST=${CIFAR10_TEST:?expected the Parquet file of the test images}
PYTHON=${PYTHON:-python}
"$PYTHON" -m evaluation.adapter_ensembles --data digits
"$PYTHON" -m evaluation.adapter_ensembles --data cifar10 --source "$TRAIN" --test-source "$TEST"
