#!/usr/bin/env bash
# SLURM job array that runs the agents of a W&B sweep, one agent per GPU.
#
# Command:  sbatch --array=0-7 experiments/slurm/agents.sh ENTITY/PROJECT/SWEEP     (as printed by `wandb sweep FILE`)
#
# Before the time limit, or on preemption, a run saves a checkpoint and is requeued in the sweep. Any agent can resume it,
# so runs/ must be on a file system shared by all nodes.
#SBATCH --job-name=swin-sweep
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%A-%a.log
set -euo pipefail
sweep=${1:?"missing argument; usage: sbatch --array=0-7 experiments/slurm/agents.sh ENTITY/PROJECT/SWEEP"}
srun wandb agent --forward-signals "$sweep"
