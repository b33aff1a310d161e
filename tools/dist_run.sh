#!/usr/bin/env bash
# Common part of dist_train.sh and dist_test.sh: runs a tool of this folder on several processes by torchrun.
#   tools/dist_run.sh TOOL CONFIG PROCESSES_PER_NODE [arguments of the tool]
# NNODES, NODE_RANK, MASTER_ADDR and PORT are handed to torchrun, PYTHON chooses the interpreter.
set -eu
case "${1:-}" in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
if [ $# -lt 3 ]; then
    echo "usage: $0 TOOL CONFIG PROCESSES_PER_NODE [arguments of the tool]" >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
tool=$1 config=$2 processes=$3
shift 3
case $processes in
    *[!0-9]* | '' | 0)
        echo "error: PROCESSES_PER_NODE must be a number of at least 1, got '$processes'" >&2
        exit 2
        ;;
esac
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$processes" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$tools/$tool" "$config" --launcher pytorch "$@"
