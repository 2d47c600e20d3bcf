#!/usr/bin/env bash
# Agents of one sweep on a SLURM cluster: an array job, one agent a GPU.
#
# Command:  sbatch --array=0-7 experiments/slurm/agents.sh ENTITY/PROJECT/SWEEP     (the line `wandb sweep FILE` prints)
#
# Before its time is over, or when the machine is taken away, a run saves its checkpoint and goes back into the sweep's
# queue; whichever agent gets it next goes on from there, so that runs/ must lie on a disk that all machines share.
#SBATCH --job-name=swin-sweep
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%A-%a.log
set -euo pipefail
sweep=${1:?"give the sweep: sbatch --array=0-7 experiments/slurm/agents.sh ENTITY/PROJECT/SWEEP"}
srun wandb agent --forward-signals "$sweep"
