#!/usr/bin/env bash
# README "Adapters for a generator": both divisions of the digits. An hour and a half on one core.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-python}
"$PYTHON" -m evaluation.lora_ensembles --division images --seeds 5
"$PYTHON" -m evaluation.lora_ensembles --division classes --seeds 1
