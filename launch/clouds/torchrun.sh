#!/usr/bin/env bash
# Train on hosts that a cloud has started, each with this script as its command: it finds the others and starts
# a rank for each GPU of its host with torchrun, one where there is none.
#
#   launch/clouds/torchrun.sh train --data data.yaml ...
#
# SageMaker tells the hosts in a file, Vertex AI in CLUSTER_SPEC; without either there is this host alone. Azure ML
# starts the ranks itself and needs no script. Another number of ranks a host: RANKS=4.
set -euo pipefail

(($#)) || { echo "error: no command. Give one, such as: $0 train --data data.yaml" >&2; exit 2; }

config=${RESOURCE_CONFIG:-/opt/ml/input/config/resourceconfig.json}
# Prints the number of hosts, the first of them, and the network card between them where that is told.
read -r count first card < <(python3 - "$config" <<'PYTHON'
import json, os, sys
from pathlib import Path

card = ""
if Path(sys.argv[1]).is_file():
    told = json.loads(Path(sys.argv[1]).read_text())
    hosts, card = sorted(told["hosts"]), told.get("network_interface_name", "")
elif os.environ.get("CLUSTER_SPEC"):
    pools = json.loads(os.environ["CLUSTER_SPEC"])["cluster"]
    hosts = [host.rpartition(":")[0] for pool in sorted(pools) for host in pools[pool]]
else:
    hosts = ["localhost"]
if hosts:
    print(len(hosts), hosts[0], card)
PYTHON
) || true # it says nothing where it knows nothing
[[ -n ${count:-} ]] || { echo "error: $config or CLUSTER_SPEC does not tell the hosts" >&2; exit 2; }

if [[ -n $card ]]; then
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$card} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$card}
fi
gpus=$(compgen -G '/dev/nvidia[0-9]*' | wc -l || true)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
# A host that joins later meets the others in a store of its own (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Spot instances are warned by SIGTERM: then the run writes a checkpoint and ends.
exec torchrun --nnodes "$count" --nproc-per-node "${RANKS:-$((gpus > 0 ? gpus : 1))}" \
  --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29400}" \
  --rdzv-id "${TRAINING_JOB_NAME:-${CLOUD_ML_JOB_ID:-horovod-yolo}}" --max-restarts "${RESTARTS:-3}" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m horovod_yolo.cli "$@"
