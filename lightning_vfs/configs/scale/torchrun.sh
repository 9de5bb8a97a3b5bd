#!/usr/bin/env bash
# Many nodes without a scheduler: run the same command on each of them, in an environment that has lightning-vfs.
# NODES is their number, MASTER_ADDR the first of them, DEVICES the number of GPUs on each. The default is one node.
#   NODES=2 MASTER_ADDR=node0 configs/scale/torchrun.sh --config configs/folders.yaml --data.root path/to/images
# After an interruption, the same command resumes the run (--ckpt_path last_if_any). All nodes need access to the folder
# of the runs. torchrun forwards SIGTERM and gives the run 30 s to write a checkpoint.
set -euo pipefail

nodes="${NODES:-1}" devices="${DEVICES:-auto}" address="${MASTER_ADDR:-localhost}:${MASTER_PORT:-29500}"

exec torchrun --nnodes "$nodes" --nproc-per-node "$devices" --rdzv-backend c10d --rdzv-endpoint "$address" \
    -m lightning_vfs fit --trainer.num_nodes "$nodes" --trainer.devices "$devices" --trainer.accelerator gpu \
    --trainer.strategy ddp --trainer.precision bf16-mixed --ckpt_path last_if_any "$@"
