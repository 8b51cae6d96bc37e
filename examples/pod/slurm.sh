#!/usr/bin/env bash
# Four nodes with eight GPUs each:  sbatch examples/pod/slurm.sh --workdir /shared/runs/pod
# What follows the script's name goes to train.py; the workdir must be one that all nodes see.
#SBATCH --job-name=pod
#SBATCH --nodes=4
# One process a GPU: JAX gives a Slurm task the GPU with its number on the node.
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# SIGTERM reaches the processes, not this shell, two minutes before the time is up.
#SBATCH --signal=TERM@120
# After a preemption, or where a node fails, Slurm puts the job back into the queue by itself.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# A preemption sends SIGTERM to this shell, too; it must live until the processes have saved. An
# empty handler is not inherited by srun, where an ignored signal would be.
trap : TERM

# The first process to end must not take the others with it while they save; where one is lost,
# trainers.initialize ends the others.
srun --kill-on-bad-exit=0 .venv/bin/python examples/pod/train.py "$@"
code=$?

# 75: preempted, or out of time, and saved. The job goes on where it was when its turn comes again.
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
