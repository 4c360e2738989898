#!/usr/bin/env bash
# `prepare` over several machines, by Ray: run the same line on each of them.
#
#   RAY_HEAD=first-machine:6379 RAY_AUTH_TOKEN=secret \
#     bash launch/cluster/ray.sh data=demo workspace=/shared/demo
#
# The machine that RAY_HEAD names starts Ray's head and runs the job; the others work for it until it ends.
#
# RAY_HEAD       host:port of one of them; the port must be open to the others
# RAY_AUTH_TOKEN one secret for all machines, such as openssl rand -hex 32 gives: who has it runs code on them
# LOCAL_ADDRESS  this machine's name or address among the others (hostname)
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
ray=${RAY:-ray}
start=("$ray" start)
[[ -z ${SPILL:-} ]] || start+=(--temp-dir "$SPILL")
job=(python launch/prepare.py engine=ray "ray.address=$RAY_HEAD" "$@")

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

if [[ ${RAY_HEAD%:*} == "${LOCAL_ADDRESS:-$(hostname)}" ]]; then
  [[ -n ${DRY_RUN:-} ]] || trap '"$ray" stop' EXIT
  run "${start[@]}" --head --port "${RAY_HEAD##*:}" --include-dashboard false
  run "${job[@]}"
else
  if [[ -z ${DRY_RUN:-} ]]; then
    for _ in {1..60}; do
      (exec 3<>"/dev/tcp/${RAY_HEAD%:*}/${RAY_HEAD##*:}") 2>/dev/null && break
      sleep 2
    done
  fi
  # Ends with the head, whose end it takes for an error.
  run "${start[@]}" --address "$RAY_HEAD" --block || true
fi
