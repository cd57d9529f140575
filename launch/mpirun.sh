#!/usr/bin/env bash
# Train on one or many hosts with Open MPI's mpirun.
#
#   launch/mpirun.sh --hosts host1:4,host2:4 [options] -- train --data data.yaml ...
#
# Options are those of `horovod-yolo launch`: --hostfile FILE, -np N, -x NAME, --interface IF, --dry-run.
# The ranks of a host share its cores among them; OMP_NUM_THREADS sets another number of threads for each.
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=$repo/.venv/bin:$PATH
exec horovod-yolo launch --mpirun "$@"
