#!/usr/bin/env bash
# Train on several GPUs: dist_train.sh CONFIG GPUS [arguments of train.py]
# Several machines: run it on each, with NNODES, NODE_RANK and MASTER_ADDR set.
set -eu
config=$1 gpus=$2
shift 2
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$gpus" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
