#!/usr/bin/env bash
# Run gen-unlearn in several processes on this host: one for each GPU, or PROCESSES of them on the CPU.
#
#     scripts/one_host.sh train --config configs/digits_spm.yaml --out runs/digits
#     PROCESSES=2 scripts/one_host.sh evaluate --images GENERATED --reference REAL --features random-conv
#
# All arguments go to gen-unlearn as they are. Precision is a key of the recipe: --set training.mixed_precision=bf16.
# Ctrl-C and SIGTERM reach every process once: training writes a resume point, and the same command continues.
#
# Environment:
#     PROCESSES         processes; one for each visible GPU by default
#     OMP_NUM_THREADS   threads of each; the cores divided by the processes by default
#     STOP_SECONDS      that processes may take to stop when asked to; 120 by default
#     PYTHON            the interpreter that has gen_unlearn; python by default
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_verb "${BASH_SOURCE[0]}" "$@"
share_out_this_host
# Not `accelerate launch`: on a CPU it starts one process, and on GPUs it does what this does. --standalone finds
# a free port. Nothing is restarted: what is broken once is broken again.
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" --max-restarts 0 \
    -m gen_unlearn "$@"
