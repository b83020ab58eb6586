#!/usr/bin/env bash
# All tables of speed in README: ratios measured in one run. Some minutes; --only measures one part.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m evaluation.performance "$@"
