#!/usr/bin/env bash
# The hosts that answer, as lines host:slots, for horovodrun --host-discovery-script.
#
#   HOSTFILE=hosts horovodrun --gloo -np 4 --min-np 2 --max-np 8 \
#     --host-discovery-script launch/discover_hosts.sh python train.py --elastic
#
# `horovod-yolo launch --elastic` writes that line. This file lies in horovod_yolo/launch, so that an installed package
# has it; launch/discover_hosts.sh is a link to it.
#
# Hosts come from the file $HOSTFILE (read anew each time: add or strike out lines while the job runs), else from
# $HOSTS (host1:4,host2:4), else from Slurm. A host is left out when its ssh port did not answer $PROBE_FAILURES
# times in a row, and is back with the first answer. horovodrun asks about once a second, and itself never
# notices a host that fell silent.
#
#   SSH_PORT=22         the port
#   PROBE_SECONDS=2     how long a host may take; all are asked at once
#   PROBE_FAILURES=2    failures in a row after which a host is out
#   PROBE_EVERY=3       seconds for which an answer holds; newer sshds shut out who knocks more often
#
# What was found last time is kept in $XDG_RUNTIME_DIR, else in a folder of the user's own in /tmp.
# Exit codes: 0, also when no host answers; 2 a mistake (one line says what).
set -euo pipefail
export LC_ALL=C

fail() {
  printf 'discover_hosts: %s\n' "$*" >&2
  exit 2
}

port=${SSH_PORT:-22} seconds=${PROBE_SECONDS:-2} limit=${PROBE_FAILURES:-2} every=${PROBE_EVERY:-3}
readonly port seconds limit every forget=60
[[ $port:$seconds:$limit:$every =~ ^([1-9][0-9]{0,4}:){3}(0|[1-9][0-9]{0,4})$ ]] ||
  fail "SSH_PORT, PROBE_SECONDS, PROBE_FAILURES and PROBE_EVERY are whole numbers; PROBE_EVERY alone may be 0"

# Lines host:slots of a hostfile, in any of the forms of hostfiles/README.md; a host that stands twice adds up.
declare -A slots=()
hosts=()
read_hosts() {
  local where=$1 line number=0 count equals='[[:space:]]*=[[:space:]]*'
  local form="^[[:space:]]*([[:alnum:]_][[:alnum:]_.-]*)(:[0-9]{1,4})?(([[:space:]]+(max[-_])?slots${equals}[0-9]{1,4})*)[[:space:]]*\$"
  while IFS= read -r line || [[ -n $line ]]; do
    ((number += 1))
    line=${line%%#*}
    [[ $line =~ [^[:space:]] ]] || continue
    [[ $line =~ $form ]] || fail "$where:$number: no host: write a line such as host1 slots=4"
    local name=${BASH_REMATCH[1]} colon=${BASH_REMATCH[2]} settings=${BASH_REMATCH[3]}
    count=1
    if [[ -n $colon ]]; then
      count=${colon#:}
    elif [[ $settings =~ [[:space:]]slots${equals}([0-9]+) ]]; then
      count=${BASH_REMATCH[1]}
    fi
    ((10#$count > 0)) || fail "$where:$number: $name has no slots"
    [[ -n ${slots[$name]:-} ]] || hosts+=("$name")
    slots[$name]=$((${slots[$name]:-0} + 10#$count))
  done
}

# Lines host:slots of a Slurm job, which writes 4(x2),3 for tasks of 4, 4 and 3.
slurm_hosts() {
  local part times names tasks=()
  names=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol does not tell the hosts of $SLURM_JOB_NODELIST"
  for part in ${SLURM_TASKS_PER_NODE//,/ }; do
    times=1
    [[ $part =~ \(x([0-9]+)\)$ ]] && times=${BASH_REMATCH[1]}
    for ((; times > 0; times--)); do tasks+=("${part%%(*}"); done
  done
  paste -d : <(printf '%s\n' "$names") <(printf '%s\n' "${tasks[@]}")
}

if [[ -n ${HOSTFILE:-} ]]; then
  [[ -f $HOSTFILE && -r $HOSTFILE ]] || fail "$HOSTFILE cannot be read. HOSTFILE names the file with the hosts"
  text=$(<"$HOSTFILE") where=$HOSTFILE
elif [[ -n ${HOSTS:-} ]]; then
  text=${HOSTS//,/$'\n'} where=HOSTS
elif [[ -n ${SLURM_JOB_NODELIST:-} && -n ${SLURM_TASKS_PER_NODE:-} ]]; then
  text=$(slurm_hosts) where=Slurm
else
  fail "no hosts. Set HOSTFILE to a file, or HOSTS to a list such as host1:4,host2:4"
fi
read_hosts "$where" <<<"$text"

# horovodrun needs no ssh to where it runs itself.
is_here() { [[ $1 == localhost || $1 == 127.0.0.1 || ${1%%.*} == "${HOSTNAME%%.*}" ]]; }

# A folder that someone else made in /tmp is not written to.
folder=${XDG_RUNTIME_DIR:-/tmp/horovod_yolo-$UID}
(umask 077 && mkdir -p -- "$folder") 2>/dev/null || true
[[ -d $folder && -O $folder && -w $folder && ! -L $folder ]] ||
  fail "$folder is not this user's folder. Set XDG_RUNTIME_DIR to one that is"
# Jobs in one folder with other lists must not forget each other's hosts.
[[ -n ${HOSTFILE:-} ]] && list= || list=$text
key=$(printf '%s\n' "$where" "$port" "$PWD" "$list" | cksum)
state=$folder/horovod_yolo-hosts-${key%% *}

# Of each host: failures in a row, and when it was last asked. One never heard of comes in with its first answer.
declare -A failures=() asked=()
if [[ -f $state ]]; then
  while read -r name count when; do
    ((EPOCHSECONDS - when > forget)) || failures[$name]=$count asked[$name]=$when
  done <"$state"
fi

declare -A probes=()
for name in "${hosts[@]}"; do
  is_here "$name" && continue
  ((${failures[$name]:-1} == 0 && EPOCHSECONDS - ${asked[$name]:-0} < every)) && continue
  # shellcheck disable=SC2016 # the inner shell's own arguments
  timeout "$seconds" bash -c ': <>"/dev/tcp/$1/$2"' probe "$name" "$port" 2>/dev/null &
  probes[$name]=$!
done
for name in "${!probes[@]}"; do
  if wait "${probes[$name]}"; then
    failures[$name]=0
  else
    failures[$name]=$((${failures[$name]:-limit} + 1))
  fi
  asked[$name]=$EPOCHSECONDS
done

trap 'rm -f -- "$state.$$"' EXIT
for name in "${hosts[@]}"; do
  if ! is_here "$name"; then
    printf '%s %s %s\n' "$name" "${failures[$name]}" "${asked[$name]}" >&3
    ((failures[$name] < limit)) || continue
  fi
  printf '%s:%s\n' "$name" "${slots[$name]}"
done 3>"$state.$$"
mv -f -- "$state.$$" "$state"
