#!/usr/bin/env bash
# README "A classifier": both tables, and digits with a public core. An hour and a half on two CPU cores.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
TRAIN=${CIFAR10_TRAIN:?expected the Parquet file of the training images}
TEST=${CIFAR10_TEST:?expected the Parquet file of the test images}
PYTHON=${PYTHON:-python}
DIGITS=(--data digits --seeds 8 --delete 3 --delete 0.1)
"$PYTHON" -m evaluation.classifier_deletion "${DIGITS[@]}"
"$PYTHON" -m evaluation.classifier_deletion "${DIGITS[@]}" --set core.mode=public \
    --result "$ROOT/evaluation/results/classifier_deletion_digits_public.json"
"$PYTHON" -m evaluation.classifier_deletion --data cifar10 --delete cat --source "$TRAIN" --test-source "$TEST"
