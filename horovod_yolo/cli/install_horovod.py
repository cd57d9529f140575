"""``horovod-yolo install-horovod``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files

from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser
from horovod_yolo.core.errors import UserError


def install_horovod_main(argv: Sequence[str]) -> int:
    """Build, install and verify Horovod for the Python that runs this."""

    def run() -> int:
        install_horovod_parser().parse_strictly(argv)
        bash = shutil.which("bash")
        if bash is None:
            raise UserError("there is no bash on the PATH", fix="install it: apt-get install bash")
        with as_file(files("horovod_yolo.install")) as folder:
            command = [bash, str(folder / "install_horovod.sh"), *argv]
            return subprocess.run(
                command, env={**os.environ, "PYTHON": sys.executable}, check=False
            ).returncode

    return guarded(run)


def install_horovod_parser() -> Parser:
    """All flags: those of the script."""
    p = Parser(
        prog="horovod-yolo install-horovod",
        allow_abbrev=False,
        description="Build Horovod for this Python and its torch: minutes, once, as the wheel is kept. It "
        "takes g++ 9 or newer, make, Python's headers and bash. torchrun and --engine torch need no Horovod.",
    )
    cuda = "collectives of GPUs over NCCL; takes a CUDA build of torch and a CUDA toolkit"
    p.add_argument("--cuda", action="store_true", help=cuda)
    anew = "build, even if a wheel of this very build is in the cache"
    p.add_argument("--no-cache", action="store_true", help=anew)
    p.add_argument("--print-key", action="store_true", help="print the name of the build, and stop")
    return p
