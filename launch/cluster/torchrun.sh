#!/usr/bin/env bash
# One job over several machines, by torchrun: run the same line on each of them.
#
#   HOSTS=2 RENDEZVOUS=first-machine:29400 \
#     bash launch/cluster/torchrun.sh train data=demo workspace=/shared/demo run.name=mine
#
# HOSTS           machines; a range such as 1:2 goes on with those that are left (1)
# RENDEZVOUS      host:port of one of them, where they meet (localhost:29400)
# RANKS_PER_HOST  processes on each (as many as it has GPUs; without any, 1)
# JOB_ID          what all of them call the job (tessera)
# MAX_RESTARTS    how often a failed rank starts all of them anew, from the newest checkpoint (0)
# LOCAL_ADDRESS   this machine's address among the others, where its host name does not say it
# TORCHRUN        the launcher (torchrun)
# DRY_RUN=1       print the command instead of running it
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "usage: bash launch/cluster/torchrun.sh JOB [key=value ...], such as: train data=demo" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ ! -f "launch/$1.py" ]]; then
  echo "launch/$1.py: no such job" >&2
  exit 2
fi
job="launch/$1.py"
shift

rendezvous=${RENDEZVOUS:-localhost:29400}
if [[ -z ${RANKS_PER_HOST:-} ]]; then
  gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
  RANKS_PER_HOST=$((gpus > 0 ? gpus : 1))
fi
read -r -a command <<<"${TORCHRUN:-torchrun}"
command+=(--nnodes "${HOSTS:-1}" --nproc-per-node "$RANKS_PER_HOST")
command+=(--rdzv-backend c10d --rdzv-endpoint "$rendezvous" --rdzv-id "${JOB_ID:-tessera}")
command+=(--max-restarts "${MAX_RESTARTS:-0}")
if [[ -n ${LOCAL_ADDRESS:-} ]]; then
  is_host=false
  [[ ${rendezvous%:*} == "$LOCAL_ADDRESS" ]] && is_host=true
  command+=(--local-addr "$LOCAL_ADDRESS" --rdzv-conf "is_host=$is_host")
fi
command+=("$job" "$@")

if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${command[@]}"
  printf '\n'
  exit 0
fi
# torchrun gives every process one thread unless told; share the machine's cores out instead.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS_PER_HOST ? cores / RANKS_PER_HOST : 1))}
exec "${command[@]}"
