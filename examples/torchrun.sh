#!/usr/bin/env bash
# Training on one machine or several, started by torchrun. On every machine, with its number:
#
#   NODES=2 NODE=0 HEAD=machine0:29500 examples/torchrun.sh --config examples/finetune.yaml --data.root my_videos
#
# One machine needs no NODES, NODE and HEAD. PROCESSES is the number for each machine, without it one for each GPU. The
# same command goes on with a run that was stopped; several machines need a folder runs/ that all of them see.
set -euo pipefail
nodes=${NODES:-1}
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
rendezvous=(--standalone)
if [ "$nodes" -gt 1 ]; then rendezvous=(--node-rank "$NODE" --rdzv-backend c10d --rdzv-endpoint "$HEAD"); fi
exec torchrun --nnodes "$nodes" --nproc-per-node "$processes" "${rendezvous[@]}" -m lightning_csn fit \
  --trainer.strategy ddp "$@" --trainer.num_nodes "$nodes" --trainer.devices "$processes" --resume
