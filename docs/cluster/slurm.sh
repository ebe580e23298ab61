#!/usr/bin/env bash
# A search on all nodes of a Slurm job:
#
#   sbatch --nodes=4 --cpus-per-task=16 --time=8:00:00 docs/cluster/slurm.sh --budget 0.5gflops
#
# RUN names its folder, which must be one that all nodes share; without it, runs/slurm-JOB in the folder of sbatch. A job
# that is requeued goes on with it, and so does RUN=runs/slurm-JOB sbatch docs/cluster/slurm.sh. Ten minutes before the
# time of the job is up, the search ends with the front so far, as by Ctrl-C.
#SBATCH --job-name=slimfront
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
set -euo pipefail

run=${RUN:-runs/slurm-$SLURM_JOB_ID}
head=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on a node have a Ray each
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)

# One token for this job, in the home that the nodes share; Ray runs the code of whoever has it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID"
mkdir -p "$HOME/.ray"
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2>/dev/null || true' EXIT

ray start --head --block --port="$port" "${resources[@]}" --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
first=$!
until ray status --address="$head:$port" >/dev/null 2>&1; do
  kill -0 "$first" # else it has not started, and has said why
  sleep 1
done
if ((SLURM_JOB_NUM_NODES > 1)); then # the others; one that starts late is used as soon as it is there
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --relative=1 --nodes="$others" --ntasks="$others" --kill-on-bad-exit=0 \
    ray start --block --address="$head:$port" "${resources[@]}" &
fi

if [[ -e $run/config.yaml ]]; then
  set -- --resume "$run" --trust-code
else
  set -- --out "$run" "$@"
fi
python -m search --ray-address="$head:$port" "$@" &
search=$!
trap 'kill -INT "$search"' USR1
code=0
wait "$search" || code=$?
while kill -0 "$search" 2>/dev/null; do # a signal ends a wait early
  code=0
  wait "$search" || code=$?
done
exit "$code"
