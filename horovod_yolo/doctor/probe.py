"""What one host says about itself. Sent over ssh to that host's Python, so it imports nothing beside the
standard library and needs nothing of ours there.

Prints a line of JSON a section, as ``{"section": ..., "facts": {...}}``: where it hangs, the sections before
it have arrived. What may hang (drivers, network file systems) comes last. Versions are read from the files of
the packages, as importing torch takes seconds: only `imports` tries one that may not load. Nothing here needs
it, so it comes last of all, in what is left of the time.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import ipaddress
import json
import mmap
import os
import platform
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

# From <linux/sockios.h> and <linux/if.h>.
_GET_FLAGS, _GET_ADDRESS, _GET_NETMASK = 0x8913, 0x8915, 0x891B
_UP, _LOOPBACK, _RUNNING = 0x1, 0x8, 0x40
_DRIVER_SECONDS = 15
_IMPORT_SECONDS = 30.0
_OF_THE_TIME = 0.8  # that is left may a program take: a host that does not end in time counts as silent
# Packages whose version can change results, beside torch and horovod.
_OTHERS = ("numpy", "opencv-python-headless", "albumentations", "pillow", "scipy", "PyYAML")
# As in `process.portable_bits`.
_INSTRUCTION_SETS = ("amx_tile", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512bw", "avx_vnni", "avx2")
# Names that Horovod's extension has in it only where it was built with the backend.
_BACKENDS = {"MPI": b"MPI_Allreduce", "Gloo": b"HOROVOD_GLOO_RENDEZVOUS_ADDR", "NCCL": b"ncclAllReduce"}


def hello(_: Facts) -> Facts:
    """Who answers, and its clock."""
    return {"time": time.time(), "hostname": socket.gethostname()}


def python(asked: Facts) -> Facts:
    """The interpreter, the user, and whether the job's folder is there."""
    try:
        os.chdir(asked["cwd"])
        folder = True
    except OSError:
        folder = False
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        user = str(os.getuid())
    return {"version": platform.python_version(), "user": user, "cwd": asked["cwd"], "folder": folder}


def network(_: Facts) -> Facts:
    """What the host's own name leads to, and its interfaces."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = None
    return {"own_address": address, "interfaces": list(filter(None, map(_interface, _interface_names())))}


def _interface_names() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _interface(name: str) -> Facts | None:
    """An interface with an IPv4 address that is up and leads out; its carrier too."""
    request = struct.pack("16s240x", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            flags = struct.unpack_from("H", fcntl.ioctl(any_socket, _GET_FLAGS, request), 16)[0]
            address, mask = (
                socket.inet_ntoa(fcntl.ioctl(any_socket, what, request)[20:24])
                for what in (_GET_ADDRESS, _GET_NETMASK)
            )
        except OSError:  # it has no address
            return None
    if not flags & _UP or flags & _LOOPBACK:
        return None
    subnet = ipaddress.ip_interface(f"{address}/{mask}").network
    return {"name": name, "address": address, "network": str(subnet), "carrier": bool(flags & _RUNNING)}


def limits(_: Facts) -> Facts:
    """Limits of a process here, None for none, and /dev/shm, in bytes."""
    facts: Facts = {"cores": len(os.sched_getaffinity(0))}
    for name, which in (("nofile", resource.RLIMIT_NOFILE), ("memlock", resource.RLIMIT_MEMLOCK)):
        soft, hard = resource.getrlimit(which)
        facts[name] = [None if value == resource.RLIM_INFINITY else value for value in (soft, hard)]
    facts["shm"] = _space("/dev/shm")
    return facts


def processor(_: Facts) -> Facts:
    """The processor's name, and the widest of its instructions that libraries of numbers tell apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    features = found.get("flags", "").split()
    widest = next((name for name in _INSTRUCTION_SETS if name in features), "none of x86's")
    return {"name": found.get("model name") or platform.machine(), "instructions": widest}


def packages(asked: Facts) -> Facts:
    """Versions of what trains, and a digest of our code."""
    sys.path[1:1] = [folder for folder in asked["pythonpath"].split(":") if folder]
    importlib.invalidate_caches()
    return {
        "torch": _torch(),
        "torchvision": _torchvision(),
        "horovod": _horovod(),
        "horovod_yolo": _ours(),
        "others": {name: _version(name) for name in _OTHERS},
    }


def _folder(package: str) -> Path | None:
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Facts | None:
    folder = _folder("torch")
    if folder is None or not (folder / "version.py").is_file():
        return None
    text = (folder / "version.py").read_text(encoding="utf-8")
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=\n]*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return {"version": version[1] if version else "unknown", "cuda": cuda[1] if cuda else None}


def _torchvision() -> Facts | None:
    """Its version, and the torch that it is for: with another one its import may fail, see `imports`."""
    version = _version("torchvision")
    if version is None:
        return None
    wanted = (
        re.match(r"torch\s*\(?==\s*([\w.]+)", text)
        for text in importlib.metadata.requires("torchvision") or ()
    )
    return {"version": version, "built_for": next((found[1] for found in wanted if found), None)}


def _horovod() -> Facts | None:
    folder = _folder("horovod")
    if folder is None:
        return None
    try:
        built_for = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get("pytorch")
    except (OSError, ValueError):
        built_for = None
    found = [folder / "torch" / f"mpi_lib_v2{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    extension = next((path for path in found if path.is_file()), None)
    return {
        "version": _version("horovod"),
        "built_for": built_for,
        "extension": extension is not None,
        "backends": _backends(extension) if extension is not None else [],
    }


def _backends(extension: Path) -> list[str]:
    if extension.stat().st_size == 0:
        return []
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [name for name, symbol in _BACKENDS.items() if content.find(symbol) >= 0]


def compilers(_: Facts) -> Facts:
    """What ``train.py --compile`` needs: a C++ compiler for CPUs, triton and a C compiler for GPUs."""
    found = {
        "cxx": [os.environ.get("CXX") or "g++"],
        "cc": [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"],
    }
    there: Facts = {kind: any(map(shutil.which, names)) for kind, names in found.items()}
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return {**there, "headers": headers.exists(), "triton": _version("triton")}


def _ours() -> Facts | None:
    folder = _folder("horovod_yolo")
    if folder is None:
        return None
    digest, version = hashlib.sha256(), "unknown"
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
        if file == folder / "__init__.py":
            found = re.search(rb'^__version__ = "([^"]+)"', content, re.MULTILINE)
            version = found[1].decode() if found else version
    return {"version": version, "digest": digest.hexdigest()[:12], "folder": str(folder)}


def imports(asked: Facts) -> Facts:
    """Why torchvision is not imported, empty where it is, None where it is not installed or takes too long.

    One of the right version fails too where it is for CUDA and torch is not.
    """
    if _version("torchvision") is None:
        return {"torchvision": None}
    try:
        seconds = min(_IMPORT_SECONDS, _seconds_for_one(asked))
        done = _own_python(asked, ["-c", "import torchvision"], seconds)
    except subprocess.TimeoutExpired:
        return {"torchvision": None}
    if done.returncode == 0:
        return {"torchvision": ""}
    last = done.stderr.strip().splitlines()[-1:]
    return {"torchvision": last[0] if last else f"exit code {done.returncode}"}


def _seconds_for_one(asked: Facts) -> float:
    """For how long a program may run now."""
    left: float = asked["ends"] - time.monotonic()
    return max(0.1, _OF_THE_TIME * left)


def _own_python(asked: Facts, words: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Another process of this Python, with nothing of what lies in the folder that ssh starts in."""
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    return subprocess.run(
        [sys.executable, *safe, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": asked["pythonpath"]},
        timeout=seconds,
        check=False,
    )


def gpus(_: Facts) -> Facts:
    """NVIDIA's GPUs as the driver names them, and InfiniBand ports."""
    ports = Path("/sys/class/infiniband").glob("*/ports/*/state")
    facts: Facts = {"gpus": [], "error": "", "infiniband": [_state(port) for port in sorted(ports)]}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=False)
    except FileNotFoundError:
        return facts
    except (OSError, subprocess.TimeoutExpired) as error:
        return {**facts, "error": str(error)}
    if done.returncode:
        first = (done.stdout + done.stderr).strip().splitlines()[:1]
        return {**facts, "error": first[0] if first else f"exit code {done.returncode}"}
    return {**facts, "gpus": parse_gpus(done.stdout)}


def _state(port: Path) -> str:
    return f"{port.parts[4]} {port.read_text().strip().partition(': ')[2]}"


def parse_gpus(csv: str) -> list[Facts]:
    """GPUs of nvidia-smi's lines ``name, driver, MiB``."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.count(",") == 2]
    return [{"name": name, "driver": driver, "memory_mib": memory} for name, driver, memory in rows]


def disks(asked: Facts) -> Facts:
    """Free space where a job writes: folders that do not exist yet count as their nearest parent."""
    return {what: _space(path) for what, path in asked["folders"].items()}


def _space(path: str) -> Facts | None:
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        space, found = os.statvfs(place), place.stat()
    except OSError:
        return None
    return {
        "path": path,
        "device": found.st_dev,
        "identity": f"{found.st_ino} {space.f_blocks}",  # the same on hosts that share it
        "total": space.f_blocks * space.f_frsize,
        "free": space.f_bavail * space.f_frsize,
        "files": space.f_favail if space.f_files else None,  # None: this kind does not count them
        "writable": os.access(place, os.W_OK | os.X_OK),
    }


def data(asked: Facts) -> Facts:
    """The keys of the data set's splits, by the package that is on this host."""
    if not Path(asked["data"]).is_absolute() and not _is_here(asked["cwd"]):
        return {"error": "the job's folder is not there"}  # in another one a built-in set would be made
    seconds = _seconds_for_one(asked)
    try:
        done = _own_python(asked, ["-m", "horovod_yolo.doctor.data_key", asked["data"]], seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"its files were not listed within {seconds:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return {"fault": last[0] if last else f"exit code {done.returncode}"}
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def _is_here(folder: str) -> bool:
    """Whether it is the current one."""
    try:
        return Path(folder).samefile(Path.cwd())
    except OSError:
        return False


def main() -> None:
    """Answer section by section."""
    asked = json.loads(sys.argv[1])
    asked["ends"] = time.monotonic() + asked["seconds"]
    sections: list[Callable[[Facts], Facts]] = [
        hello,
        python,
        network,
        limits,
        processor,
        packages,
        compilers,
        gpus,
        disks,
        *([data] if asked["data"] else []),
        imports,
    ]
    for section in sections:
        sys.stdout.write(json.dumps({"section": section.__name__, "facts": section(asked)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
