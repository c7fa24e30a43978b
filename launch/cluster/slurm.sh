#!/usr/bin/env bash
# Trains on SLURM: one process per node with all its accelerators, or one per GPU.
#
#   sbatch --nodes=32 --ntasks-per-node=8 --gpus-per-node=8 launch/cluster/slurm.sh \
#       --config=configs/sparse70.py:llama2_7b --config.init=DIR --workdir=DIR
#
# The working directory and the code must lie on a filesystem that all nodes share.
# PYTHON names the interpreter of the environment with sparse_jax, if not `python`.

#SBATCH --job-name=sparse_jax
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

# srun sends SIGTERM to the processes five minutes before the time is up; they save and
# leave with 75. When a process dies the others leave with 76. Both go on when run again;
# a bug (1) and bad input (2) do not. srun returns the highest code of all processes.
code=0
srun --kill-on-bad-exit=0 --label \
    "${PYTHON:-python}" -u launch/train.py --distributed "$@" || code=$?
if ((code > 2 && ${SLURM_RESTART_COUNT:-0} < 100)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
