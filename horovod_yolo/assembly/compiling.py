"""``--compile``: who makes the network's code before the first step, where it lies, and who waits for whom.

PyTorch's compiler takes minutes, and a part of that where it finds what it has made before. So the ranks of a
host share a folder: the first of them compiles, on the cores of all, and then the others find its code there.
Meanwhile each rank goes on meeting the others, for one that is not heard of for long counts as late.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.assembly.fitting import sample
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.digest import digest
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.memory import shortage
from horovod_yolo.distributed.agreement import raise_together, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.places import local_cache
from horovod_yolo.io.private import own_folder
from horovod_yolo.process.portable_bits import processor
from horovod_yolo.training.compiled import CompiledNetwork, Sizes
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.running_statistics import RunningStatistics

log = logging.getLogger(__name__)
FLAG = "--compile"
FOLDER = "TORCHINDUCTOR_CACHE_DIR"
STATED = os.environ.get(FOLDER, "")  # by the user: PyTorch's compiler writes its own there when it is loaded
SECONDS_BETWEEN_MEETINGS = 5.0
_ONE_AT_A_TIME = threading.Lock()  # where a rank is lost, the others' compilers go on beside what comes next
# No kernel is chosen by how long it takes, whatever TORCHINDUCTOR_* says: another rank would choose another.
# On GPUs some are all the same, but for `deterministic`, which `_options` adds.
_SETTLED = {
    "max_autotune": False,
    "max_autotune_pointwise": False,
    "max_autotune_gemm": False,
    "coordinate_descent_tuning": False,
    "force_layout_optimization": True,  # channels last, as all inputs are; else sides cannot vary
}


def require_compiler(config: TrainConfig, comm: Communicator) -> None:
    """Raise where a host cannot compile, as far as that is known before there are data and a model.

    *Collective* where the run's settings ask for it; all others begin without a meeting.

    Raises:
        UserError: says what is missing; on all ranks alike.
    """
    if config.compile:
        together(comm, lambda: _require_here(config))


def _require_here(config: TrainConfig) -> None:
    """Raise `UserError` where this host cannot."""
    if not hasattr(torch.compiler, "set_stance"):
        raise _unable(f"torch 2.6 or newer is needed, this is {torch.__version__}", "update it")
    if not torch._dynamo.eval_frame.is_dynamo_supported():
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise _unable(f"torch {torch.__version__} compiles for no Python {python}", "use an older Python")
    on_gpu = config.device not in ("", "cpu") or (not config.device and torch.cuda.is_available())
    if on_gpu and not _triton():
        raise _unable("GPUs need the package triton", "pip install triton")
    variable, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++",))
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(map(shutil.which, names)):
        raise _unable(f"there is no {names[0]}", f"apt-get install g++, name another compiler in {variable}")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        raise _unable(f"there is no {headers}", "apt-get install python3-dev")


def _unable(what: str, fix: str) -> UserError:
    return UserError(f"{FLAG} on {socket.gethostname()}: {what}", fix=f"{fix}, or leave {FLAG} out")


def _triton() -> str:
    """Its version; empty where it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""


def compiler_of(device: torch.device) -> str:
    """What compiles for a device, with its version: another one may make code that adds otherwise."""
    if device.type != "cpu":
        return f"triton {_triton()}"
    command = [os.environ.get("CXX") or "g++", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def compile_network(trainer: Trainer) -> None:
    """Let steps go through compiled code, where the run's settings say so. *Collective.*

    Call it when weights and passes are those of the next step.

    Raises:
        UserError: it cannot be compiled; on all ranks alike.
    """
    config, stepper, comm = trainer.config, trainer.stepper, trainer.comm
    if not config.compile:
        return
    begun = time.monotonic()
    device = stepper.precision.device
    sizes = sizes_of(trainer)
    folder = together(comm, lambda: _folder(config.cache_dir)) / _processor() / sizes.name
    options = together(comm, lambda: _options(config, device, comm))
    network = CompiledNetwork(stepper.model, sizes, options)

    def make() -> list[Tensor]:
        with _ONE_AT_A_TIME, _code_in(folder):
            torch.compiler.reset()  # forgets the code of earlier runs of this process, laid out for theirs
            if device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread
            return network.make(stepper.precision)

    log.info("%s: making code for passes of %s; minutes the first time, less from then on", FLAG, sizes)
    statistics = RunningStatistics(stepper.model, 1)
    statistics.begin()
    found = in_turns(comm, make)
    stepper.use(network, sample(1, config.imgsz, 1).to(device))
    statistics.restore()
    _compare(found, trainer)
    log.info("%s: made in %.0f s", FLAG, time.monotonic() - begun)


def sizes_of(trainer: Trainer) -> Sizes:
    """Of the passes of a run that are compiled."""
    config, stepper = trainer.config, trainer.stepper
    side, stride = config.imgsz, max(stepper.model.strides)
    # Code for sides that vary is made with unlike ones where they may be, or they would be taken for one.
    other = side if not config.rect else side - stride if side >= 3 * stride else side + stride
    return Sizes.of(
        config.batch_size,
        stepper.slices.count,
        stepper.passes.count,
        sides=(side, other),
        stride=stride,
        vary=config.multi_scale or config.rect,
    )


def _options(config: TrainConfig, device: torch.device, comm: Communicator) -> dict[str, Any]:
    """Of PyTorch's compiler."""
    from torch._inductor import config as known

    threads = torch.get_num_threads()
    cores = threads * comm.local_size if comm.local_rank == 0 else threads
    options: dict[str, Any] = {**_SETTLED, "cpp.threads": threads, "compile_threads": cores}
    if config.deterministic and device.type != "cpu":
        if not hasattr(known, "deterministic"):
            what = f"torch {torch.__version__} tries kernels out, which --deterministic rules out"
            raise _unable(what, "update it")
        options["deterministic"] = True
    return options


def _folder(cache_dir: str) -> Path:
    """Of this user's alone: what lies there is run as it is."""
    if STATED:
        return Path(STATED)
    folder = None if cache_dir else local_cache("compiled")
    if folder is None:
        folder = Path(cache_dir or tempfile.gettempdir()) / f"compiled-{os.geteuid()}"
        try:
            own_folder(folder)
        except OSError as error:
            what = f"{folder} cannot be used for compiled code ({error.strerror or error})"
            raise UserError(what, fix="name a folder with --cache-dir") from None
    return folder


def _processor() -> str:
    """A name for what code is made for. It fits no other, and hosts may share the folder."""
    name, features = processor()
    return hashlib.blake2s(" ".join([name, *sorted(features)]).encode(), digest_size=4).hexdigest()


@contextmanager
def _code_in(folder: Path) -> Iterator[None]:
    """Inside, PyTorch keeps what it compiles in a folder."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]
        if before is not None:
            os.environ[FOLDER] = before


def in_turns(comm: Communicator, work: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What some work gives: first that of each host's first rank, then that of the others. *Collective.*

    It is done in a thread. Meanwhile the ranks meet.

    Raises:
        UserError: it failed on a rank as a compiler fails; on all ranks alike.
    """
    pool = ThreadPoolExecutor(1, "compile")
    done: Future[list[Tensor]] = Future()
    try:
        for turn in (True, False):
            mine = (comm.local_rank == 0) is turn
            if mine:
                done = pool.submit(work)
            over = [False]
            while not all(over):
                if mine:
                    wait([done], SECONDS_BETWEEN_MEETINGS)
                over = comm.allgather_object(done.done() or not mine)
            raise_together(comm, _problem(done) if mine else None)
    finally:
        pool.shutdown(wait=False)  # where another rank is lost there is more to do than to wait for it
    return done.result()


def _problem(done: Future[list[Tensor]]) -> str | None:
    """Why it could not be compiled, in a line; what is no compiler's fault is raised."""
    error = done.exception()
    if error is None:
        return None
    if (lack := shortage(error)) is not None:
        return f"{FLAG} on {socket.gethostname()}: {lack}. Use a smaller --micro-batch"
    if not isinstance(error, RuntimeError):
        raise error
    log.debug("%s", error, exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return str(_unable(" ".join(lines[:2]), "set TORCH_LOGS=+inductor to see why"))


def _compare(found: list[Tensor], trainer: Trainer) -> None:
    """Note where ranks compute unlike of what is the same on all of them. *Collective.*"""
    if trainer.config.sums != "exact":
        return
    if len(set(trainer.comm.allgather_object(int(digest(found))))) > 1:
        words = "compiled code computes unlike on different ranks"
        log.warning("%s: %s, so bits may differ", FLAG, words)
        trainer.note_unlike(words)
