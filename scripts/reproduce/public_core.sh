#!/usr/bin/env bash
# README "A public core" and the tables of evaluation/README.md. Twenty minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m evaluation.public_core "$@"
