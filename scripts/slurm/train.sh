#!/bin/bash
# Train on several nodes, one task per GPU; a job that runs out of time or is preempted goes on where it was.
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 scripts/slurm/train.sh experiment=hippocampus
#SBATCH --job-name=learnreg
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

srun python train.py trainer=ddp trainer.num_nodes="$SLURM_JOB_NUM_NODES" \
    trainer.devices="${SLURM_NTASKS_PER_NODE:-1}" resume=auto "$@"
code=$?
if [ "$code" = 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
