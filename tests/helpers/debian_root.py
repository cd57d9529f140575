"""Root file systems to run commands in: Debian's, bootstrapped, entered with namespaces and chroot.

What is mounted for a command is mounted in a namespace of its own and gone when the command ends, however
it ends; nothing of it is ever seen from outside.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CACHE = (
    Path.home() / ".cache" / "horovod_yolo"
)  # survives the run of the tests: making things here takes long
SUITE = "bookworm"
ARCHIVE = "http://deb.debian.org"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOURCES = f"""\
deb {ARCHIVE}/debian {SUITE} main
deb {ARCHIVE}/debian {SUITE}-updates main
deb {ARCHIVE}/debian-security {SUITE}-security main
"""

# $1: the root; $2, $3: options of chroot; then the command. BINDS holds a line each: source, tab, target.
_ENTER = """
root=$1; user=$2; groups=$3; shift 3
mount --make-rprivate /
if [ -n "$CONTAINER" ]; then
  mount -t tmpfs tmpfs /mnt
  mkdir /mnt/upper /mnt/work /mnt/root
  mount -t overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
  root=/mnt/root
  cat /etc/hosts >"$root/etc/hosts"
  cat /etc/resolv.conf >"$root/etc/resolv.conf"
fi
if [ -n "$OWN_NETWORK" ]; then
  ip link set lo up
  hostname container
  printf '127.0.0.1 %s\\n' localhost container >"$root/etc/hosts"
fi
mount -t proc proc "$root/proc"
mkdir -p "$root/dev"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "mode=1777,size=$SHM_SIZE" tmpfs "$root/dev/shm"
printf '%s' "$BINDS" | while IFS="$(printf '\\t')" read -r source target; do
  options=bind
  case $target in *:ro) target=${target%:ro}; options=bind,ro ;; esac
  if [ -d "$source" ]; then mkdir -p "$root$target"
  else mkdir -p "$root${target%/*}"; [ -e "$root$target" ] || : >"$root$target"; fi
  mount --bind "$source" "$root$target"
  [ $options = bind ] || mount -o "remount,$options" "$root$target"
done
unset BINDS SHM_SIZE OWN_NETWORK CONTAINER
exec chroot "$user" "$groups" "$root" "$@"
"""


def why_not() -> str | None:
    """Why roots cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "a bootstrapped root needs root"
    missing = [
        tool
        for tool in ("debootstrap", "apt-config", "unshare", "setpriv", "chroot", "ip")
        if not shutil.which(tool)
    ]
    if missing:
        return f"a bootstrapped root needs {', '.join(missing)}: apt-get install debootstrap iproute2"
    words = [
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--uts",
        "--ipc",
        "--fork",
        "mount",
        "-t",
        "tmpfs",
        "tmpfs",
        "/mnt",
    ]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"namespaces are not allowed: {tried.stderr.strip()}" if tried.returncode else None


def bootstrap(folder: Path) -> Path:
    """A fresh Debian in ``folder``, as debian:bookworm-slim is. The first one ever takes minutes."""
    archive = CACHE / "debootstrap" / f"{SUITE}-{platform.machine()}.tar"
    if not archive.exists():
        _make_archive(archive)
    folder.mkdir(parents=True)
    subprocess.run(["tar", "--numeric-owner", "-xf", archive, "-C", folder], check=True)
    (folder / "etc/apt/sources.list").write_text(SOURCES)
    # The image does not keep what apt downloads either.
    (folder / "etc/apt/apt.conf.d/docker-clean").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
    )
    return folder


def _make_archive(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    root = archive.with_name(f".{archive.name}.{os.getpid()}")
    words = ["--variant=minbase", f"--arch={ARCHITECTURES[platform.machine()]}", SUITE]
    try:
        made = subprocess.run(
            ["debootstrap", *words, str(root), f"{ARCHIVE}/debian"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"debootstrap {shlex.join(words)}: {made.stdout[-2000:]}{made.stderr}")
        partly = archive.with_suffix(".part")
        left_out = ["--exclude=./dev", "--exclude=./proc/*", "--exclude=./var/cache/apt/archives/*.deb"]
        subprocess.run(["tar", "--numeric-owner", *left_out, "-cf", partly, "-C", root, "."], check=True)
        partly.replace(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """How a command enters a root.

    Attributes:
        root: the root's folder.
        env: all of its environment.
        user: numbers of user and group.
        folder: where it starts.
        binds: folders and files of this machine, and where they are to be seen in the root; ``:ro`` at the
            end keeps them from being written.
        container: what it writes into the root is dropped at its end; it knows the hosts that this machine
            knows.
        own_network: a network with nothing but ``lo``, and ``container`` for a name, instead of this
            machine's; for a container only.
        shm: size of ``/dev/shm``.
    """

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] = (0, 0)
    folder: str = "/"
    binds: Sequence[tuple[Path, str]] = ()
    container: bool = False
    own_network: bool = False
    shm: str = "64m"

    def argv(self, command: Sequence[str]) -> list[str]:
        """The words that run ``command`` in the root; it and all it started die with the first of them."""
        binds = "".join(f"{source}\t{target}\n" for source, target in self.binds)
        switches = [f"CONTAINER={'yes' * self.container}", f"OWN_NETWORK={'yes' * self.own_network}"]
        namespaces = ["--mount", "--pid", "--ipc", *(["--net", "--uts"] if self.own_network else [])]
        user, group = self.user
        variables = [f"{name}={value}" for name, value in self.env.items()]
        return [
            *("setpriv", "--pdeathsig", "KILL", "env", *switches, f"BINDS={binds}", f"SHM_SIZE={self.shm}"),
            *("unshare", *namespaces, "--fork", "--kill-child", "/bin/sh", "-ec", _ENTER, "enter"),
            *(str(self.root), f"--userspec={user}:{group}", f"--groups={group}"),
            *("/usr/bin/env", "-i", f"--chdir={self.folder}", *variables, *command),
        ]

    def run(self, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; output and errors are one text. One that takes too long raises."""
        return subprocess.run(
            self.argv(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )


def account(root: Path, user: str) -> tuple[int, int, str]:
    """Numbers of user and group and the home of a user, given by name or number, as the root knows it."""
    for line in (root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, _, home, _ = line.split(":")
        if user in (name, uid):
            return int(uid), int(gid), home
    raise LookupError(f"{root} has no user {user}")
