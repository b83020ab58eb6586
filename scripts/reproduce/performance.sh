#!/usr/bin/env bash
# All tables of speed in README: ratios measured in one run, a quarter of an hour; --only PART measures one part.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
"${PYTHON:-python}" -m evaluation.performance "$@"
