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
# $HOSTS (host1:4,host2:4), else from Slurm. One host under two names is one. A host is left out when its ssh port did
# not answer $PROBE_FAILURES times in a row, and is back with the first answer; a line on stderr says so. horovodrun
# asks about once a second, and itself never notices a host that fell silent.
#
#   SSH_PORT=           the port; default: what `ssh -G HOST` says, as it does of the address and of a way by other hosts
#   PROBE_SECONDS=2     how long a host may take; all are asked at once
#   PROBE_FAILURES=2    failures in a row after which a host is out
#   PROBE_EVERY=3       seconds for which an answer holds; newer sshds shut out who knocks more often
#
# What was found last time is kept in $XDG_RUNTIME_DIR, else in the user's cache, else in a folder of his own in /tmp,
# whose name ends at random.
# Exit codes: 0, also when no host answers; 2 a mistake (one line says what).
set -euo pipefail
export LC_ALL=C

fail() {
  printf 'discover_hosts: %s\n' "$*" >&2
  exit 2
}

port=${SSH_PORT:-} seconds=${PROBE_SECONDS:-2} limit=${PROBE_FAILURES:-2} every=${PROBE_EVERY:-3}
readonly port seconds limit every forget=60 remind=30
[[ ${port:-22}:$seconds:$limit:$every =~ ^([1-9][0-9]{0,4}:){3}(0|[1-9][0-9]{0,4})$ ]] ||
  fail "SSH_PORT, PROBE_SECONDS, PROBE_FAILURES and PROBE_EVERY are whole numbers; PROBE_EVERY alone may be 0"

# Lines host:slots of a hostfile, in any of the forms of hostfiles/README.md; a host that stands twice adds up.
declare -A slots=()
hosts=()
read_hosts() {
  local where=$1 line number=0 count equals='[[:space:]]*=[[:space:]]*'
  local form="^[[:space:]]*([[:alnum:]_][[:alnum:]_.-]*)(:[0-9]{1,4})?(([[:space:]]+((max[-_])?slots${equals}[0-9]{1,4}|weight${equals}[0-9.]{1,13}))*)[[:space:]]*\$"
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

# A folder that someone else made, or a link to elsewhere, is not written to.
is_own() { [[ -d $1 && -O $1 && -w $1 && ! -L $1 ]]; }
folder='' tried=()
cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
for place in "${XDG_RUNTIME_DIR:-}" "${cache:+$cache/horovod_yolo}"; do
  [[ -n $place ]] || continue
  tried+=("$place")
  (umask 077 && mkdir -p -- "$place") 2>/dev/null || true
  if is_own "$place"; then
    folder=$place
    break
  fi
done
readonly in_tmp=/tmp/horovod_yolo-hosts-$UID
tried+=("$in_tmp.*")
for place in "$in_tmp".*; do # made by an earlier call
  [[ -n $folder ]] || ! is_own "$place" || folder=$place
done
[[ -n $folder ]] || folder=$(mktemp -d -- "$in_tmp.XXXXXXXX" 2>/dev/null) || true
[[ -n $folder ]] || fail "no folder of this user's own: ${tried[*]}. Set XDG_RUNTIME_DIR to one"
# Jobs in one folder with other lists must not forget each other's hosts.
[[ -n ${HOSTFILE:-} ]] && list= || list=$text
key=$(printf '%s\n' "$where" "$port" "$HOSTNAME" "$PWD" "$list" | cksum)
state=$folder/horovod_yolo-hosts-${key%% *}

# Seconds since the machine started: a clock may be set back.
read -r now _ </proc/uptime
now=${now%%.*}

# Of each host: failures in a row, when it was last asked, and by which address, port and way (tcp or ssh). One never
# heard of comes in with its first answer.
declare -A failures=() asked=() address=() ports=() way=()
if [[ -f $state && -O $state ]]; then
  while read -r name count when at number how; do
    ((when <= now && now - when <= forget)) || continue
    failures[$name]=$count asked[$name]=$when address[$name]=$at ports[$name]=$number way[$name]=$how
  done <"$state"
elif [[ $where == Slurm && ${SLURM_HET_SIZE:-1} != 1 ]]; then
  echo "discover_hosts: of this heterogeneous Slurm job only the first component is used: $SLURM_JOB_NODELIST" >&2
fi

# This host's own addresses: lines `|-- 10.0.0.1` that are followed by `/32 host LOCAL`.
declare -A own=()
last=''
while read -r mark value _; do
  [[ $mark != '|--' ]] || last=$value
  [[ "$mark $value" != '/32 host' ]] || own[$last]=yes
done 2>/dev/null </proc/net/fib_trie || true

address_of() { # of a name; the name itself where it has none
  local found
  found=$(getent ahostsv4 "$1") || found=$1
  printf '%s' "${found%%[[:space:]]*}"
}

# horovodrun needs no ssh to where it runs itself. Names count whole: a host may be called 10.0.0.1.
is_here() { [[ $1 == localhost || $1 == "$HOSTNAME" || -n ${own[$(address_of "$1")]:-} ]]; }

# Where ssh goes, in its own words.
find_way() {
  local name=$1 word value
  address[$name]=$name ports[$name]=22 way[$name]=tcp
  while read -r word value; do
    case $word in
      hostname) address[$name]=$value ;;
      port) ports[$name]=$value ;;
      proxyjump | proxycommand) [[ $value == none ]] || way[$name]=ssh ;;
    esac
  done < <(ssh -G "$name" </dev/null 2>/dev/null)
  ports[$name]=${port:-${ports[$name]}}
  address[$name]=$(address_of "${address[$name]}")
}

# One host under two names is one, and gets the slots of both.
declare -A first=()
others=() lines=()
for name in "${hosts[@]}"; do
  if [[ -z ${asked[$name]:-} ]] && is_here "$name"; then
    identity=here
  else
    [[ ${failures[$name]:-1} == 0 ]] || find_way "$name"
    identity=${address[$name]}:${ports[$name]}
  fi
  if [[ -n ${first[$identity]:-} ]]; then
    ((slots[${first[$identity]}] += slots[$name]))
    continue
  fi
  first[$identity]=$name
  lines+=("$name")
  [[ $identity == here ]] || others+=("$name")
done

probe() { # a host, at most for as long as it may take
  if [[ ${way[$1]} == ssh ]]; then
    timeout $((3 * seconds)) ssh -T -o BatchMode=yes "$1" exit </dev/null
  else
    # shellcheck disable=SC2016 # the inner shell's own arguments
    timeout "$seconds" bash -c ': <>"/dev/tcp/$1/$2"' probe "${address[$1]}" "${ports[$1]}"
  fi
}
declare -A probes=()
for name in "${others[@]}"; do
  ((${failures[$name]:-1} == 0 && now - ${asked[$name]:-0} < every)) && continue
  probe "$name" >/dev/null 2>&1 &
  probes[$name]=$!
done
for name in "${!probes[@]}"; do
  before=${failures[$name]:--1} # of one never heard of
  at="${address[$name]} port ${ports[$name]}"
  [[ ${way[$name]} == tcp ]] || at="$at, by way of ssh's ProxyJump or ProxyCommand"
  if wait "${probes[$name]}"; then
    failures[$name]=0
    ((before < limit)) || echo "discover_hosts: $name ($at) answers again" >&2
  else
    failures[$name]=$((before < 0 ? limit : before + 1))
    ((failures[$name] < limit || (failures[$name] - limit) % remind)) ||
      echo "discover_hosts: $name does not answer ssh at $at; left out until it does" >&2
  fi
  asked[$name]=$now
done

unfinished=$(mktemp -- "$state.XXXXXX")
trap 'rm -f -- "$unfinished"' EXIT
for name in "${others[@]}"; do
  echo "$name ${failures[$name]} ${asked[$name]} ${address[$name]} ${ports[$name]} ${way[$name]}"
done >"$unfinished"
mv -f -- "$unfinished" "$state"
for name in "${lines[@]}"; do
  ((${failures[$name]:-0} < limit)) || continue
  printf '%s:%s\n' "$name" "${slots[$name]}"
done
