"""The command that starts a job: checked and complete before anything starts, as a list of arguments."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch.elastic import Elastic
from horovod_yolo.launch.hostfile import Host

CALL = "horovod_yolo.cli.call"  # the program of ranks that a call from Python starts
Launcher = Literal["horovodrun-gloo", "horovodrun-mpi", "mpirun", "torch"]

# horovodrun over Gloo puts the environment on ssh's command line, where `ps` shows it to everyone.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
_NO_SECRET = {"TOKENIZERS_PARALLELISM"}
# mpirun passes on what it is told only. These make the ranks the same everywhere.
_PASSED_ON = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|LANG|LC_ALL|TZ|XDG_CACHE_HOME|MPLBACKEND"
    r"|PYTHON[A-Z0-9_]*|(OMP|MKL|OPENBLAS|CUDA|NVIDIA|NCCL|HOROVOD|TORCH|PYTORCH|UCX|FI)_[A-Z0-9_]*"
)
# Numbers of this host's own GPUs. Each other host shows what it has; `--device` speaks for all.
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
_OF_THIS_HOST = re.compile(r"(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES")
# Linux takes no longer argument, and horovodrun over Gloo writes a rank's environment into one.
_MOST_BYTES_OF_AN_ARGUMENT = 128 * 1024 - 1
_BYTES_OF_THE_LAUNCHER = 4096  # its own variables, and the words around
_MOST_NAMED = 4
# Open MPI writes for the login shell of another host, which it takes for this account's own: a Bourne or a C
# shell. With any of these it reports a syntax error and waits for ever.
_SHELLS_OF_ANOTHER_GRAMMAR = {"fish", "nu", "xonsh", "elvish", "pwsh"}
# What Open MPI starts ranks on other hosts with, where it is not ssh. That of Kubeflow's first MPI operators
# hands no input on, by which ranks over Gloo get the job's secret and their command.
_REMOTE_SHELL, _WITHOUT_INPUT = "OMPI_MCA_plm_rsh_agent", "kubexec.sh"
# A launcher around this one left these; they would tell the ranks a wrong place.
_OF_A_RANK = re.compile(
    r"HOROVOD_((LOCAL_|CROSS_)?(RANK|SIZE)|HOSTNAME|GLOO_RENDEZVOUS_.*|CONTROLLER)"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|TORCHELASTIC_.*"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]*(,[A-Za-z0-9_][A-Za-z0-9_.:@-]*)*")


@dataclass(frozen=True)
class LaunchPlan:
    """A checked job: as many slots as ranks (those of an ``elastic`` job change), and what runs on each.

    ``tool`` is the path of horovodrun, mpirun or torchrun; ``program`` is what a rank runs; ``names`` are
    variables that mpirun passes on; ``prefix`` is where Open MPI is on the other hosts, None for what their
    PATH says.
    ``folder`` is where the ranks run, None where the launcher itself brings them there; see `spelled_out`.
    """

    launcher: Launcher
    tool: str
    hosts: tuple[Host, ...]
    program: tuple[str, ...]
    interface: str | None = None
    names: tuple[str, ...] = ()
    prefix: str | None = None
    as_root: bool = False
    folder: Path | None = None
    elastic: Elastic | None = None
    restarts: int = 0  # over torch: how often all ranks are started anew when one is lost
    told: Mapping[str, str] = field(
        default_factory=dict
    )  # variables of the ranks' that follow from the hosts

    def torchrun(self) -> list[list[str]]:
        """For each host the command that does what a job over torch does, but for where torchrun listens."""
        where = ["--standalone"]
        if len(self.hosts) > 1:
            meeting = ("--rdzv-endpoint", f"{self.hosts[0].name}:29400", "--rdzv-id", "job")
            where = ["--nnodes", str(len(self.hosts)), "--rdzv-backend", "c10d", *meeting]
        restarts = ["--max-restarts", str(self.restarts)] if self.restarts else []
        return [
            [self.tool, *where, *restarts, "--nproc-per-node", str(host.slots), "--no-python", *self.program]
            for host in self.hosts
        ]

    def argv(self) -> list[str]:
        """The command, for no shell: arguments with spaces stay whole."""
        return self._mpirun() if self.launcher == "mpirun" else self._horovodrun()

    def _command(self) -> tuple[str, ...]:
        return ("env", "-C", str(self.folder), *self.program) if self.folder else self.program

    def _where(self) -> list[str]:
        if self.elastic is not None:
            return self.elastic.options(self.hosts)
        ranks = sum(host.slots for host in self.hosts)
        return ["-np", str(ranks), "-H", ",".join(map(str, self.hosts))]

    def _mpi_options(self) -> list[str]:
        # Ranks that wait yield the core: with data workers there are more processes than cores.
        prefix = ["--prefix", self.prefix] if self.prefix else []
        return [*prefix, "-mca", "mpi_yield_when_idle", "1"]

    def _horovodrun(self) -> list[str]:
        over_mpi = self.launcher == "horovodrun-mpi"
        # One word with a '=': a shell reads it once more, and argparse must not take it for a flag.
        how = ["--mpi", f"--mpi-args={shlex.join(self._mpi_options())}"] if over_mpi else ["--gloo"]
        # Without the cache's hour a host that was mended is seen at once.
        network = ["--network-interfaces", self.interface] if self.interface else []
        given = without_time_flag(self._command())
        return [self.tool, *how, "--disable-cache", *network, *self._where(), *given]

    def _mpirun(self) -> list[str]:
        root = ["--allow-run-as-root"] if self.as_root else []
        network, passed = [], [word for name in self.names for word in ("-x", name)]
        if self.interface:
            network = ["-mca", "btl_tcp_if_include", self.interface]
            if "NCCL_SOCKET_IFNAME" not in self.names:
                passed += ["-x", f"NCCL_SOCKET_IFNAME={self.interface}"]
        between = "tcp,self,vader" if len(self.hosts) > 1 else "self,vader"  # on one host no rank listens
        transport = ["-mca", "pml", "ob1", "-mca", "btl", between, *network]
        binding = ["-bind-to", "none", "-map-by", "slot"]
        options = [*root, *self._where(), *binding, *transport, *self._mpi_options(), *passed]
        return [self.tool, *options, *self._command()]


def fit(hosts: Sequence[Host], ranks: int | None = None) -> tuple[Host, ...]:
    """``hosts`` with ``ranks`` slots together, filled in order; all slots where ``ranks`` is None.

    horovodrun 0.28.1 over Gloo starts a rank in every slot whatever ``-np`` says, so none may be left over.

    Raises:
        UserError: ``ranks`` do not fit.
    """
    slots = sum(host.slots for host in hosts)
    left = slots if ranks is None else ranks
    if left < 1:
        raise UserError(f"{left} ranks are none", where="-np")
    if left > slots:
        raise UserError(
            f"{left} ranks do not fit {slots} slots",
            where=",".join(map(str, hosts[:8])) + ("..." if len(hosts) > 8 else ""),
            fix="lower -np, or name more slots or hosts",
        )
    taken = []
    for host in hosts:
        if left > 0:
            taken.append(Host(host.name, min(host.slots, left)))
            left -= host.slots
    return tuple(taken)


def program(words: Sequence[str]) -> tuple[str, ...]:
    """What each rank runs with this Python: ``train``, ``val``, ``predict``, ``replay``, ``bench``, a script.

    Raises:
        UserError: neither.
    """
    if not words:
        raise UserError("nothing to launch", fix="write it after `--`, such as `-- train --data data.yaml`")
    if words[0] in ("train", "val", "predict", "replay", "bench"):
        return (*module_command("horovod_yolo.cli"), *words)
    if words[0] == CALL:
        return (*module_command(CALL), *words[1:])
    if Path(words[0]).suffix != ".py":
        raise UserError("is neither train, val, predict, replay, bench nor a Python script", where=words[0])
    if not Path(words[0]).is_file():
        raise UserError("no such file", where=words[0])
    return (sys.executable, *words)


def without_time_flag(command: Sequence[str]) -> list[str]:
    """A training's ``--time 2`` as ``time=2``, which it reads as well.

    horovodrun takes that flag for its ``--timeline-filename``, also behind the program's name.
    """
    words = list(command)
    if not any(word == "train" or Path(word).name == "train.py" for word in words):
        return words
    while "--time" in words[:-1]:
        at = words.index("--time")
        words[at : at + 2] = [f"time={words[at + 1]}"]
    return [word.removeprefix("--") if word.startswith("--time=") else word for word in words]


def module_command(name: str) -> tuple[str, ...]:
    """The command that runs a module, without what lies in the working folder.

    ``-m`` looks there first: a ``horovod`` or a ``torch.py`` among somebody's data would be imported. In the
    folder that holds the package, where it may not be installed, everything is the user's own.
    """
    of_the_package = Path(__file__).parents[2]
    safe = sys.version_info >= (3, 11) and Path.cwd() != of_the_package
    return (sys.executable, *(["-P"] if safe else []), "-m", name)


def keeps_to_interface(launcher: Launcher) -> bool:
    """Whether ranks reach each other over the interface that is named, whatever their own names resolve to.

    Stock Horovod's Gloo does not; the one built by `horovod-yolo install-horovod` does.
    """
    return launcher != "horovodrun-gloo" or is_our_build(importlib.metadata.version("horovod"))


def is_our_build(version: str) -> bool:
    """Whether this is a version of Horovod from `horovod-yolo install-horovod`, which adds a local part."""
    return "+k" in version


def spelled_out(folder: Path) -> Path | None:
    """``folder`` where the launcher cannot be trusted to bring the ranks there, or None.

    horovodrun over Gloo writes ``cd FOLDER`` for a shell, without quotes.
    """
    return folder if shlex.quote(str(folder)) != str(folder) else None


def tool(launcher: Launcher) -> str:
    """Path of horovodrun, mpirun or torchrun: this Python's own before the PATH's.

    Raises:
        UserError: there is none.
    """
    name = {"mpirun": "mpirun", "torch": "torchrun"}.get(launcher, "horovodrun")
    found = shutil.which(name, path=str(scripts())) or shutil.which(name)
    if found is None:
        package = "PyTorch brings it" if launcher == "torch" else "horovod-yolo install-horovod installs it"
        raise UserError(f"{name} is not there", fix=f"{package} for this Python")
    return found


def scripts() -> Path:
    """Folder of this Python's programs; not resolved, or a virtual environment would be left."""
    return Path(sys.executable).parent


def own_mpi(hosts: Sequence[Host]) -> str | None:
    """Prefix of an Open MPI installed into this Python's environment.

    Other hosts would find another Open MPI, or none, on their PATH. None where this Python has none, and for
    one host.
    """
    return str(scripts().parent) if len(hosts) > 1 and (scripts() / "mpirun").exists() else None


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for the launcher: no secrets, no rank of an outer job, this Python's programs first."""
    kept = {
        name: value
        for name, value in environ.items()
        if not is_secret(name) and not _OF_A_RANK.fullmatch(name)
    }
    folders = [folder for folder in kept.get("PATH", "").split(":") if folder and folder != str(scripts())]
    return {**kept, "PATH": ":".join([str(scripts()), *folders])}


def of_other_hosts(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what holds on this host only: numbers of its own GPUs."""
    return {name: value for name, value in environ.items() if not _OF_THIS_HOST.fullmatch(name)}


def passed_on(environ: Mapping[str, str], also: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of the variables that mpirun passes on: those known to matter, and ``also``.

    Raises:
        UserError: a name of ``also`` is not set, is no name, is that of a secret, or means this host only.
    """
    wanted = {name for name in environ if _PASSED_ON.fullmatch(name) and not _OF_THIS_HOST.fullmatch(name)}
    for name in also:
        if _OF_THIS_HOST.fullmatch(name):
            raise UserError(
                "is each host's own, and no launcher passes it on",
                where=f"-x {name}",
                fix="`train --device 0,2` says it for all hosts",
            )
        if not _NAME.fullmatch(name) or name not in environ:
            raise UserError("no such variable is set", where=f"-x {name}")
        if is_secret(name):
            raise UserError(
                "looks like a secret, which others could read on the hosts",
                where=f"-x {name}",
                fix="let the ranks read it from a file",
            )
        wanted.add(name)
    return tuple(sorted(n for n in wanted if not is_secret(n) and not _OF_A_RANK.fullmatch(n)))


def check_size(plan: LaunchPlan, environ: Mapping[str, str]) -> None:
    """The environment must fit where horovodrun over Gloo puts it: one argument of a command.

    Raises:
        UserError: it does not; names the longest variables.
    """
    if plan.launcher != "horovodrun-gloo":
        return
    written = {name: len(os.fsencode(f"{name}={shlex.quote(value)} ")) for name, value in environ.items()}
    command = shlex.join(plan.program)
    # Quoted once more for another host, where each quote becomes five characters.
    quotes = 4 * (sum(shlex.quote(value).count("'") for value in environ.values()) + command.count("'"))
    size = sum(written.values()) + len(os.fsencode(command)) + quotes + _BYTES_OF_THE_LAUNCHER
    if size > _MOST_BYTES_OF_AN_ARGUMENT:
        longest = sorted(written, key=written.__getitem__, reverse=True)[:_MOST_NAMED]
        named = ", ".join(f"{name} ({written[name]} bytes)" for name in longest)
        raise UserError(
            f"the environment is too large for horovodrun over Gloo: {size} bytes, "
            f"and {_MOST_BYTES_OF_AN_ARGUMENT} are the limit. The longest variables: {named}",
            fix="unset what the job does not need (`env -u NAME horovod-yolo launch ...`), or use --mpirun",
        )


def check_shell(plan: LaunchPlan, shell: str, away: bool) -> None:
    """The login shell must understand what Open MPI sends to other hosts.

    Args:
        plan: the job.
        shell: path of this account's login shell.
        away: whether a rank is on another host.

    Raises:
        UserError: it does not.
    """
    name = Path(shell).name
    if away and plan.launcher in ("horovodrun-mpi", "mpirun") and name in _SHELLS_OF_ANOTHER_GRAMMAR:
        raise UserError(
            f"Open MPI cannot start ranks on other hosts through the login shell {name}",
            fix="use --gloo, or give the account a Bourne shell (`chsh -s /bin/bash`)",
        )


def check_remote_shell(plan: LaunchPlan, environ: Mapping[str, str], away: bool) -> None:
    """Ranks over Gloo on other hosts need a remote shell that hands input on.

    Args:
        plan: the job.
        environ: of the launcher.
        away: whether a rank is on another host.

    Raises:
        UserError: it does not: they would end at once, and say nothing.
    """
    shell = environ.get(_REMOTE_SHELL, "")
    if away and plan.launcher == "horovodrun-gloo" and Path(shell).name == _WITHOUT_INPUT:
        raise UserError(
            f"{_REMOTE_SHELL}={shell} hands no input on, and ranks over Gloo on other hosts read their "
            "command from there",
            fix="use --mpirun, or the MPI operator of v2beta1, whose workers run sshd (docs/launch.md)",
        )


def is_secret(name: str) -> bool:
    """Whether a variable of this name may hold a secret."""
    return bool(_SECRET.search(name)) and name not in _NO_SECRET


def checked_interface(name: str | None) -> str | None:
    """``name`` as given with ``--interface``, or None.

    Raises:
        UserError: not the name of an interface, nor a list of them.
    """
    if name is not None and not _INTERFACE.fullmatch(name):
        raise UserError(
            f"{name!r} is no network interface", where="--interface", fix="`ip -br link` lists them"
        )
    return name
