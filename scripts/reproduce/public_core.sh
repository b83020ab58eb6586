#!/usr/bin/env bash
# README "A public core" and the tables of evaluation/README.md. Twenty minutes on two CPU cores.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.public_core "$@"
