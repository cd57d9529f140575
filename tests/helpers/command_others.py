"""Launchers, schedulers, containers, clouds and tools of the system: their own parsers, and no more."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from botocore import xform_name
from botocore.session import get_session
from horovod.runner.launch import parse_args as horovodruns_parser
from torch.distributed.run import get_args_parser as torchruns_parser

from horovod_yolo.launch.hostfile import parse_hosts
from tests.helpers.command_calls import LACKS, PROGRAMS, Call, RefusedError, demand, existing, printed
from tests.helpers.command_lines import REPO, simple_commands

# Places where nobody listens: clients read their command line, and then say that they reach no one.
_NOBODY = "127.0.0.1:1"
_SLURM = """
ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
MessageTimeout=1
AuthType=auth/none
CredType=cred/none
GresTypes=gpu
NodeName=none
PartitionName=all Nodes=none Default=YES
"""
# Programs that are not here. Their manuals have these flags.
_MANUALS: Mapping[str, set[str]] = {
    "qsub": {"-l", "--"},
    "bsub": {"-n", "-R"},
    "trtexec": {"--onnx", "--saveEngine", "--fp16"},
    "az": {"--file"},
    "gcloud": {"--region", "--display-name", "--config"},
}


def _horovodrun(call: Call) -> None:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", ["horovodrun", *call.words])
        try:
            given = horovodruns_parser()
        except SystemExit:
            if call.whole or not LACKS.search(said.getvalue()):
                raise RefusedError(said.getvalue()) from None
            return
    if given.hosts:  # under Gloo Horovod fills all slots that it is given
        slots = sum(host.slots for host in parse_hosts(given.hosts))
        if slots != given.num_proc:
            raise RefusedError(f"{slots} slots are not {given.num_proc} ranks")
    if given.command:
        call.then(given.command, given.num_proc)


def _mpirun(call: Call) -> None:
    """Open MPI reads its command line and lays out the ranks, and starts none."""
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    said = printed(call, "mpirun", *root, "--oversubscribe", "--do-not-launch", *call.words)
    if not call.whole and "No executable was specified" in said:
        return
    demand(said, "exit code 0$")
    at = next((n for n, word in enumerate(call.words) if word in PROGRAMS), None)
    if at is None:
        raise RefusedError(f"{call}: mpirun of what?")
    ranks = int(call.words[call.words.index("-np") + 1]) if "-np" in call.words else 1
    call.then(call.words[at:], ranks)


def _torchrun(call: Call) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            given = torchruns_parser().parse_args(list(call.words))
        except SystemExit:
            if call.whole or not LACKS.search(said.getvalue()):
                raise RefusedError(said.getvalue()) from None
            return
    ranks = int(given.nnodes.split(":")[0]) * int(given.nproc_per_node)
    program = [given.training_script, *given.training_script_args]
    call.then(program if given.no_python else ["python", *program], ranks)


def _slurm(call: Call) -> None:
    """Clients of Slurm read all of their options before they look for a controller: there is none."""
    (call.folder / "slurm.conf").write_text(_SLURM)
    test = ["--test-only"] if call.program == "sbatch" else []
    conf = str(call.folder / "slurm.conf")
    said = printed(call, call.program, *test, *call.words, SLURM_CONF=conf)
    part = "" if call.whole else "|No command given"
    demand(said, "Unable to contact slurm controller" + part)
    at = next((n for n, word in enumerate(call.words) if not word.startswith("-")), None)
    if at is not None:
        call.then(call.words[at:])


def _batch(call: Call) -> None:
    """PBS and LSF: what follows our script."""
    at = next((n for n, word in enumerate(call.words) if word.startswith(("launch/", "$PWD/launch/"))), None)
    if at is None:
        raise RefusedError(f"{call}: none of launch/")
    _by_manual(replace(call, words=call.words[:at]))
    call.then(call.words[at:])


def _by_manual(call: Call) -> None:
    flags = {word.split("=")[0] for word in call.words if word.startswith("-")}
    if flags - _MANUALS[call.program]:
        raise RefusedError(f"{call.program}: {' '.join(flags - _MANUALS[call.program])} is not noted here")
    for word in call.words:
        if word.startswith("launch/"):
            existing(word)


# --- containers and clouds


def _docker(call: Call) -> None:
    """The client reads all of its flags before it looks for a daemon, of which there is none."""
    said = printed(call, "docker", *call.words, DOCKER_HOST=f"tcp://{_NOBODY}")
    part = "" if call.whole else "|requires at least 1 argument"
    demand(said, "Cannot connect to the Docker daemon|unknown server OS" + part)
    if call.words[0] == "build":
        existing(call.words[call.words.index("-f") + 1])
    if call.words[0] == "run":
        image = next((n for n, word in enumerate(call.words) if word.startswith("horovod-yolo:")), -1)
        if image > 0 and call.words[image + 1 :]:
            call.then(call.words[image + 1 :])


def _kubectl(call: Call) -> None:
    """The client reads its flags and files before it looks for a server, of which there is none."""
    said = printed(call, "kubectl", f"--server=http://{_NOBODY}", *call.words, KUBECONFIG=os.devnull)
    demand(said, "refused" if call.whole else "refused|must be specified")
    for word in call.words:
        if word.startswith("launch/") and word != "launch/k8s":
            tested = [(REPO / f"tests/unit/test_{kind}.py").read_text() for kind in ("k8s", "trainjob")]
            if not any(existing(word).name in text for text in tested):
                raise RefusedError(f"{word}: no test holds it against a schema")


def _aws(call: Call) -> None:
    service, operation, *flags = call.words
    model = get_session().get_service_model(service)
    known = {xform_name(name, "-") for name in model.operation_names}
    if operation not in known:
        raise RefusedError(f"aws {service} has no {operation}")
    for word in flags:
        if word.startswith("file://"):
            existing(word.removeprefix("file://"))


# --- tools of the system


def _make(call: Call) -> None:
    said = printed(call, "make", "-n", *call.words)
    demand(said, "exit code 0$")
    for line in said.splitlines():
        if "tests.mutants" in line or "benchmarks/tables.py" in line:
            for words in simple_commands(line):
                call.then(words)


def _apt_get(call: Call) -> None:
    said = printed(call, "apt-get", "--simulate", *call.words)
    if re.search(r"E: (Command line option|Invalid operation)", said):
        raise RefusedError(said)


def _with_known_options(call: Call) -> None:
    """A tool whose help has each of its options. The help of some comes where an option is unknown."""
    help_of = ["git", call.words[0], "-h"] if call.program == "git" else [call.program, "--help"]
    said = printed(call, *help_of)
    for word in call.words:
        option = re.fullmatch(r"--?[A-Za-z][\w-]*", word)
        if option and not re.search(rf"(?<![\w-]){word}\b|\[-\w*{word[1:]}", said):
            raise RefusedError(f"{call.program} has no {word}")


def _sudo(call: Call) -> None:
    call.then(call.words)


def _source(call: Call) -> None:
    if call.words != (".venv/bin/activate",):
        raise RefusedError(f"what is {call.words}?")


def _eval(call: Call) -> None:
    inside = re.fullmatch(r"\$\((.*)\)", call.words[0])
    assert inside, call
    for words in simple_commands(inside[1]):
        call.then(words)


def _nothing(call: Call) -> None:
    """A word of the shell's."""


OTHERS: Mapping[str, Callable[[Call], None]] = {
    "horovodrun": _horovodrun,
    "mpirun": _mpirun,
    "torchrun": _torchrun,
    **dict.fromkeys(("srun", "sbatch"), _slurm),
    **dict.fromkeys(("qsub", "bsub"), _batch),
    **dict.fromkeys(("trtexec", "az", "gcloud"), _by_manual),
    "docker": _docker,
    "kubectl": _kubectl,
    "aws": _aws,
    "make": _make,
    "apt-get": _apt_get,
    **dict.fromkeys(("mkdir", "cp", "chown", "paste", "ssh-keygen", "git", "ssh"), _with_known_options),
    "sudo": _sudo,
    ".": _source,
    "eval": _eval,
    **dict.fromkeys(("cd", "export", "sshd.sh"), _nothing),
}
