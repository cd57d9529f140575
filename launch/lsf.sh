#!/usr/bin/env bash
# Train under LSF: a slot is a rank. Submit from the checkout.
#
#   bsub -n 8 -R "span[ptile=4]" launch/lsf.sh [options] -- train --data data.yaml ...
#
# Options are those of `horovod-yolo launch`: --mpi, --mpirun, --interface IF, --dry-run. The hosts must reach each
# other with ssh.
set -euo pipefail

if [[ -n ${LSB_MCPU_HOSTS:-} ]]; then # host1 4 host2 4
  read -ra words <<<"$LSB_MCPU_HOSTS"
  hosts=''
  for ((i = 0; i < ${#words[@]}; i += 2)); do
    hosts+=${hosts:+,}${words[i]}:${words[i + 1]:-}
  done
elif [[ -n ${LSB_HOSTS:-} ]]; then # host1 host1 host2 host2
  read -ra words <<<"$LSB_HOSTS"
  hosts=$(IFS=, && echo "${words[*]}")
else
  echo "error: not in an LSF job. Submit with: bsub -n 8 launch/lsf.sh -- train --data data.yaml" >&2
  exit 2
fi

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=$repo/.venv/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a slot is a core, unless the queue says otherwise
exec horovod-yolo launch --hosts "$hosts" "$@"
