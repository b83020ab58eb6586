#!/usr/bin/env bash
# README "Measuring a generator after deletion": two deletions, three oracles of each. Half an hour on two CPU cores.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.deletion_audit "$@"
