#!/usr/bin/env bash
# Run gen-unlearn on several hosts: start this command on each of them, with its own HOST_INDEX.
#
#     HOSTS=2 HOST_INDEX=0 MASTER_ADDR=node0 scripts/many_hosts.sh train --config FILE --out DIR   # on node0
#     HOSTS=2 HOST_INDEX=1 MASTER_ADDR=node0 scripts/many_hosts.sh train --config FILE --out DIR   # on node1
#
# The output folder must lie on a file system that all hosts see, under one path, and the code must be the same.
# All arguments go to gen-unlearn as they are. To stop, ask any one host to (Ctrl-C or SIGTERM): training writes a
# resume point, and the same commands continue.
#
# Environment:
#     HOSTS             how many hosts
#     HOST_INDEX        which one this is, from 0
#     MASTER_ADDR       name or address of host 0, where all others reach it
#     MASTER_PORT       a free port there; 29500 by default
#     PROCESSES         processes on this host; one for each visible GPU by default
#     OMP_NUM_THREADS   threads of each; the cores divided by the processes by default
#     STOP_SECONDS      that processes may take to stop when asked to; 120 by default
#     PYTHON            the interpreter that has gen_unlearn; python by default
#     NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME   the network interface, where hosts have several
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require_verb "${BASH_SOURCE[0]}" "$@"
require_number HOSTS "${HOSTS:-}" 1
require_number HOST_INDEX "${HOST_INDEX:-}" 0
[ "$HOST_INDEX" -lt "$HOSTS" ] || fail "expected HOST_INDEX below HOSTS ($HOSTS), got $HOST_INDEX"
[ -n "${MASTER_ADDR:-}" ] || fail "expected the name of host 0 in MASTER_ADDR, got nothing"
MASTER_PORT=${MASTER_PORT:-29500}
require_number MASTER_PORT "$MASTER_PORT" 1
share_out_this_host
exec "$PYTHON" -m torch.distributed.run --nnodes "$HOSTS" --node-rank "$HOST_INDEX" \
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
    --nproc-per-node "$PROCESSES" --max-restarts 0 -m gen_unlearn "$@"
