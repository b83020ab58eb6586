#!/usr/bin/env bash
# README "Asking for images": the search for altered copies. Some minutes; photographs need the CIFAR-10 files.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python}" -m evaluation.near_duplicates "$@"
