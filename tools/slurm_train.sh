#!/usr/bin/env bash
# Train on a Slurm cluster: sbatch -p PARTITION -N NODES --gpus-per-node=8 --ntasks-per-node=8 \
#     tools/slurm_train.sh CONFIG WORK_DIR [arguments of train.py]
# One task a GPU. Five minutes before the time limit the tasks get SIGTERM and write a checkpoint; the job then queues itself
# again and goes on from there, so a time limit of hours will do for a training of days.
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
mkdir -p "$work_dir"
touch "$work_dir/.started"
# Before the time limit the tasks alone are signalled; scancel and preemption signal this shell, too, and then it is
# Slurm's to decide whether the job comes back.
ended=
trap 'ended=1' TERM
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -u "$tools/train.py" "$config" --work-dir "$work_dir" \
    --launcher slurm --resume "$@"
code=$?
# The exit code does not tell: a task that leaves a little later than the first is killed.
last=$work_dir/last_checkpoint
if [ -z "$ended" ] && [ "$code" -ne 0 ] && [ "$last" -nt "$work_dir/.started" ] && grep -q 'interrupted\.pth$' "$last"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
