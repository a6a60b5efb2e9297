#!/usr/bin/env bash
# Evaluate on a Slurm cluster: sbatch -p PARTITION --gpus-per-node=8 --ntasks-per-node=8 \
#     tools/slurm_test.sh CONFIG CHECKPOINT [arguments of test.py]
# One task a GPU.
#SBATCH --job-name=mmdet_ddetr-test
#SBATCH --cpus-per-task=5
set -eu
config=$1 checkpoint=$2
shift 2
tools=${TOOLS:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/tools}
export MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 20000))}
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -u "$tools/test.py" "$config" "$checkpoint" --launcher slurm "$@"
