#!/usr/bin/env bash
# Train under PBS (OpenPBS, PBS Professional): an MPI process is a rank. Submit from the checkout.
#
#   qsub -l select=2:ncpus=16:mpiprocs=4:ompthreads=4 -- "$PWD/launch/pbs.sh" [options] -- train --data data.yaml ...
#
# Options are those of `horovod-yolo launch`: --mpi, --mpirun, --interface IF, --dry-run. The hosts must reach each
# other with ssh.
set -euo pipefail

if [[ -z ${PBS_NODEFILE:-} ]]; then
  echo "error: not in a PBS job. Submit with: qsub -- \"\$PWD/launch/pbs.sh\" -- train --data data.yaml" >&2
  exit 2
fi

cd -- "${PBS_O_WORKDIR:-$PWD}" # PBS starts jobs in the home folder
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=$repo/.venv/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # PBS sets it from ompthreads

# A host stands in the file once for each of its processes; the parser adds them up.
exec horovod-yolo launch --hostfile "$PBS_NODEFILE" "$@"
