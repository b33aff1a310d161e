#!/usr/bin/env bash
# Common part of dist_train.sh and dist_test.sh: dist_run.sh TOOL CONFIG PROCESSES_PER_NODE [arguments of the tool]
set -eu
tools=$(cd "$(dirname "$0")" && pwd)
tool=$1 config=$2 processes=$3
shift 3
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$processes" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}" \
    "$tools/$tool" "$config" --launcher pytorch "$@"
