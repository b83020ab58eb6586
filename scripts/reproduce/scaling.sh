#!/usr/bin/env bash
# README "Scaling out": what several processes gain, worked out and simulated. Some minutes on one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m evaluation.scaling "$@"
