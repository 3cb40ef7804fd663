#!/bin/bash
# Register the pairs of a table in an array job, one shard per task.
#   sbatch --array=1-100 scripts/slurm/batch.sh pairs.csv -o results --method brain
#SBATCH --job-name=learnreg
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=2
#SBATCH --requeue

learnreg batch "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" --threads "${SLURM_CPUS_PER_TASK:-1}" --quiet
