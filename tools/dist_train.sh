#!/usr/bin/env bash
# Train on several processes: torchrun + DDP, one node or several. With CUDA one process a GPU (NCCL), else gloo on CPUs.
#   tools/dist_train.sh CONFIG PROCESSES_PER_NODE [flags of tools/train.py]
# Several nodes: on each of them, with one and the same address,
#   NNODES=2 NODE_RANK=0|1 MASTER_ADDR=host0 PORT=29500 tools/dist_train.sh CONFIG PROCESSES_PER_NODE
set -eu
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG PROCESSES_PER_NODE [flags of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "$0")/dist_run.sh" train.py "$1" "$2" "${@:3}"
