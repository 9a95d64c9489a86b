#!/bin/bash
# One large network at a time on all GPUs of two nodes.
#   sbatch deploy/training/slurm-torchrun.sh autorep/table5 /shared/runs/table5 /shared/imagenet
#SBATCH --job-name=parelu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=72:00:00
#SBATCH --requeue
set -euo pipefail
recipe=$1 run=$2 data=$3

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=8 --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$head:29400" --rdzv-id="$SLURM_JOB_ID" \
  -m -- parelu recipe "$recipe" --run "$run" --data-folder "$data"
