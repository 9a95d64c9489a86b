#!/bin/bash
# A recipe on a Ray cluster inside one Slurm job: trainings side by side, half a GPU each.
#   sbatch deploy/training/slurm-ray.sh autorep/table3 /shared/runs/table3
#SBATCH --job-name=parelu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --requeue
set -euo pipefail
recipe=$1 run=$2 # on a disk that all nodes share; the same job again goes on from what is finished

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}')
port=6379

srun --nodes=1 --ntasks=1 -w "${nodes[0]}" --overlap \
  ray start --head --node-ip-address="$head" --port="$port" --disable-usage-stats --block &
sleep 20
if ((${#nodes[@]} > 1)); then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" --overlap \
    ray start --address="$head:$port" --disable-usage-stats --block &
  sleep 20
fi
srun --nodes=1 --ntasks=1 -w "${nodes[0]}" --overlap \
  parelu recipe "$recipe" --run "$run" --on "ray:$head:$port,cpus=4,gpus=0.5"
