#!/usr/bin/env bash
# `prepare` over several machines, by Ray: run the same line on each of them.
#
#   HOSTS=4 RAY_HEAD=first-machine:6379 RAY_AUTH_TOKEN=secret \
#     bash launch/cluster/ray.sh data=demo workspace=/shared/demo
#
# The machine that RAY_HEAD names starts Ray's head and runs the job; the others work for it until it ends.
#
# HOSTS          machines for which the job waits before it begins (1)
# RAY_HEAD       host:port of one of them; the port must be open to the others
# RAY_AUTH_TOKEN one secret for all machines, such as openssl rand -hex 32 gives: who has it runs code on them
# LOCAL_ADDRESS  this machine's name or address among the others (hostname)
# CPUS           workers on this machine (as many as cores that it gives this script)
# WAIT_SECONDS   how long machines wait for the head, and the head for them (120)
# RAY            the launcher (ray)
# SPILL          folder of this machine to which Ray spills what its memory does not hold (Ray's default)
# DRY_RUN=1      print the commands instead of running them
set -euo pipefail

if [[ $# -lt 1 || -z ${RAY_HEAD:-} ]]; then
  echo "usage: RAY_HEAD=host:port bash launch/cluster/ray.sh key=value ..., such as: data=demo" >&2
  exit 2
fi
if [[ -z ${RAY_AUTH_TOKEN:-} ]]; then
  echo "RAY_AUTH_TOKEN: missing; expected one secret for all machines (openssl rand -hex 32)" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
# nproc says 1 where OMP_NUM_THREADS does, which is not about Ray's workers.
start=("${RAY:-ray}" start --num-cpus "${CPUS:-$(env -u OMP_NUM_THREADS nproc)}")
[[ -z ${SPILL:-} ]] || start+=(--temp-dir "$SPILL")
job=(python launch/prepare.py engine=ray "ray.address=$RAY_HEAD" "$@")
seconds=${WAIT_SECONDS:-120}
is_head=
[[ ${RAY_HEAD%:*} != "${LOCAL_ADDRESS:-$(hostname)}" ]] || is_head=1
if [[ -n $is_head ]]; then
  start+=(--head --port "${RAY_HEAD##*:}" --include-dashboard false --block)
else
  start+=(--address "$RAY_HEAD" --block)
fi

if [[ -n ${DRY_RUN:-} ]]; then
  echo "${start[*]@Q}"
  [[ -z $is_head ]] || echo "${job[*]@Q}"
  exit 0
fi

head_answers() {
  for ((waited = 0; waited < seconds; waited++)); do
    (exec 3<>"/dev/tcp/${RAY_HEAD%:*}/${RAY_HEAD##*:}") 2>/dev/null && return
    sleep 1
  done
  echo "RAY_HEAD=$RAY_HEAD: no head answers; LOCAL_ADDRESS says which machine it is" >&2
  return 1
}

# The job counts the cores of the machines that are there when it begins.
wait_for_machines='
import sys, time, ray
wanted, seconds = int(sys.argv[2]), float(sys.argv[3])
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
end = time.monotonic() + seconds
while (found := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < end:
    time.sleep(1)
if found < wanted:
    print(f"HOSTS={wanted}: {found} there after {seconds:.0f} s; begins with these", file=sys.stderr)
'

if [[ -n $is_head ]]; then
  "${start[@]}" &
  head=$!
  # This head alone: other work of the user on this machine may run on Ray, too.
  trap 'kill "$head" 2>/dev/null && wait "$head" || true' EXIT
  head_answers
  python -c "$wait_for_machines" "$RAY_HEAD" "${HOSTS:-1}" "$seconds"
  "${job[@]}"
else
  head_answers
  # Ends with the head, whose end it takes for an error; one that was never let in is one.
  joined=$("${start[@]}" 2>&1 | tee >(cat >&2) | grep -c "Ray runtime started") || true
  [[ $joined != 0 ]]
fi
