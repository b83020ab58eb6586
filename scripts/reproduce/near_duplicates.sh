#!/usr/bin/env bash
# README "Asking for images": the search for altered copies. Some minutes; photographs need the CIFAR-10 files.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.near_duplicates "$@"
