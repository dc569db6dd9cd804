#!/usr/bin/env bash
#SBATCH --job-name=csn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Training on several machines under SLURM; one task for each GPU:
#
#   sbatch examples/slurm.sh --config examples/finetune.yaml --data.root my_videos --model.pretrained ircsn_152_ig65m
#
# A job that is preempted, or has 300 seconds left, gets SIGTERM: training finishes its batch, writes last.ckpt and ends
# with exit code 143. SLURM requeues what it preempted, and this script what ran out of time. Requeued, the job goes on
# where it was; after a machine has failed, from the newest last.ckpt.
set -uo pipefail
runs=${RUNS:-runs/$SLURM_JOB_ID}
options=(--trainer.strategy ddp "$@" --trainer.default_root_dir "$runs")
options+=(--trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE")
# One way of requeueing: the one below, which goes by the exit code.
options+=(--trainer.plugins lightning.pytorch.plugins.environments.SLURMEnvironment)
options+=(--trainer.plugins.auto_requeue false)
srun lightning-csn fit "${options[@]}" --resume
code=$?
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
