#!/usr/bin/env bash
# Train on a Slurm cluster: sbatch -p PARTITION -N NODES --gpus-per-node=8 --ntasks-per-node=8 \
#     tools/slurm_train.sh CONFIG WORK_DIR [arguments of train.py]
# One task a GPU. Five minutes before the time limit, and when the job is preempted, a checkpoint is written; the job then
# queues itself again and goes on from there, so a time limit of hours will do for a training of days.
#SBATCH --job-name=mmdet_ddetr
#SBATCH --cpus-per-task=5
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
config=$1 work_dir=$2
shift 2
# Slurm runs a copy of this file from its spool folder, so the tools are looked for where sbatch was called.
tools=${TOOLS:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}/tools}
export MASTER_PORT=${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 20000))}
trap : TERM # of a preemption: wait for srun, which gets it as well
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -u "$tools/train.py" "$config" --work-dir "$work_dir" \
    --launcher slurm --resume "$@"
code=$?
if [ "$code" -eq 75 ]; then # EX_TEMPFAIL: stopped by a signal, with a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
