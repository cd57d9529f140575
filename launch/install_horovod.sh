#!/usr/bin/env bash
# `horovod-yolo install-horovod` for .venv beside this folder, or for $PYTHON's environment: also where this
# package is not installed yet. Takes the same options: [--cuda] [--no-cache] [--print-key]
set -euo pipefail

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} && -x $repo/.venv/bin/python ]]; then
  export PYTHON=$repo/.venv/bin/python
fi
exec "$BASH" "$repo/horovod_yolo/install/install_horovod.sh" "$@"
