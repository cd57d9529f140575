"""torchrun's agent of one host, in a job of `torch_job`: ``python -m horovod_yolo.launch.torch_agent``.

Its input begins with a line that says what to run; what follows are requests. When the input ends, the
launcher is gone, and the ranks are ended at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from horovod_yolo.launch.stop_files import private_folder
from horovod_yolo.process.interfaces import interface_with
from horovod_yolo.process.signals import STOP_FILE

STOP = b"stop\n"
HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # signals to an agent that its ranks get too
_SECONDS_TO_LEAVE = 120  # for ranks that get one: a step and a checkpoint
_SECONDS_TO_MEET = 30
_MISTAKE, _STOPPED, _FAULT = 2, 3, 1
_KILLED = 128  # and the number of the signal


def main() -> int:
    """Run this host's ranks to their end; 2 or 3 where they ended so, else 0, 1 or 128 and a signal."""
    requests = _own_input()
    told = json.loads(requests.readline())
    address = _own_address(*told["meet"])
    folder = private_folder()
    os.environ |= _settings(address) | {STOP_FILE: str(folder / "stop")}
    threading.Thread(target=_obey, args=(requests, folder), daemon=True).start()
    try:
        return _run(_options(told, address, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_input() -> Any:
    """Standard input, byte by byte, for this process alone: its ranks would inherit it."""
    copy = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return os.fdopen(copy, "rb", buffering=0)


def _own_address(host: str, port: int) -> str:
    """This host's on the way to where agents meet."""
    with socket.create_connection((host, port), timeout=_SECONDS_TO_MEET) as way:
        address: str = way.getsockname()[0]
        return address


def _settings(address: str) -> dict[str, str]:
    """Variables of the agent and its ranks: where they listen, and who is told of signals."""
    settings = {
        # Rank 0 serves the ranks' store itself, at its own address: an agent would at all of them.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # of names without an address
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SECONDS_TO_LEAVE),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": HANDED_ON,
        "PET_SIGNALS_TO_HANDLE": HANDED_ON,  # the default of torchrun's flag, which has the last word
    }
    card = interface_with(address)
    cards = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if not os.environ.get(name)]
    return settings | (dict.fromkeys(cards, card) if card else {})


def _obey(requests: Iterable[bytes], folder: Path) -> None:
    """Do what the launcher asks for, until it is gone."""
    for line in requests:
        if line == STOP:
            (folder / "stop").touch()
    shutil.rmtree(folder, ignore_errors=True)
    for process in psutil.Process().children(recursive=True):
        process.kill()
    os._exit(_KILLED + signal.SIGKILL)


def _options(told: dict[str, Any], address: str, folder: Path) -> list[str]:
    """Torchrun's."""
    host, port = told["meet"]
    return [
        *("--nnodes", str(told["hosts"]), "--nproc-per-node", str(told["ranks"])),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}", "--rdzv-id", told["job"]),
        *("--rdzv-conf", "is_host=false", "--local-addr", address),
        *("--log-dir", str(folder / "agent")),  # its own would be left in /tmp
        *("--max-restarts", str(told["restarts"]), "--no-python", *told["program"]),
    ]


def _run(options: list[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what matters is said below
    threads = os.environ.get("OMP_NUM_THREADS")
    config, program, arguments = run.config_from_args(run.parse_args(options))  # type: ignore[no-untyped-call]
    if threads is None:  # torchrun says one; ranks share the cores
        os.environ.pop("OMP_NUM_THREADS", None)
    try:
        elastic_launch(config, program)(*arguments)
    except ChildFailedError as error:
        for rank, failure in sorted(error.failures.items()):
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # which the agent itself sends
                who, name = f"rank {rank} on {socket.gethostname()}", signal.Signals(-failure.exitcode).name
                sys.stderr.write(f"{who} was ended by {name}\n")
        return code_of({failure.exitcode for failure in error.failures.values()})
    except SignalException as error:
        return _KILLED + int(error.sigval)
    return 0


def code_of(codes: set[int]) -> int:
    """Of a host whose ranks failed with these: a mistake is told by one of them, a stop by all alike.

    Those that the agent has ended with SIGTERM, since another had left before them, tell nothing.
    """
    codes = codes - {-signal.SIGTERM} or codes
    if _MISTAKE in codes:
        return _MISTAKE
    return _STOPPED if codes == {_STOPPED} else _FAULT


if __name__ == "__main__":
    sys.exit(main())
