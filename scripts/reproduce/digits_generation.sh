#!/usr/bin/env bash
# README "Figures": the generator on digits, and a class deleted from it. Half an hour on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m evaluation.digits_generation "$@"
