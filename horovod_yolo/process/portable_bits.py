"""Arithmetic that is the same on all x86 processors with AVX2, whatever else they have (``--portable-bits``).

PyTorch's own kernels, oneDNN, MKL, NumPy, its OpenBLAS and OpenCV each choose by the processor how they add,
and with wider registers they add in another order. They can be told not to, by variables that they read when
they are loaded: so a process that was not started with these begins again. Its children inherit them.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from horovod_yolo.core.errors import UserError

FLAG = "--portable-bits"
CPUINFO = Path("/proc/cpuinfo")
_EVERYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",  # its ways for AVX2 and later are for Intel's processors only
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENCV_IPP": "avx2",
}
_WITH_AVX512 = {  # OpenCV complains where there is nothing to disable
    "OPENCV_CPU_DISABLE": "AVX512-SKX",
    "NPY_DISABLE_CPU_FEATURES": (
        "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4"
    ),
}
# What oneDNN tells apart, the widest first, by the kernel's names.
_INSTRUCTION_SETS = ("amx_tile", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512bw", "avx_vnni", "avx2")


@cache
def processor(file: Path = CPUINFO) -> tuple[str, frozenset[str]]:
    """Name and features of this host's processor, as Linux has them; no features where it is no x86."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return found.get("model name") or platform.machine(), frozenset(found.get("flags", "").split())


def instruction_set(features: frozenset[str]) -> str:
    """The widest of them that libraries of numbers tell apart."""
    return next((name for name in _INSTRUCTION_SETS if name in features), "none of x86's")


def variables(features: frozenset[str]) -> Mapping[str, str]:
    """What must be set where the processor has these features."""
    return _EVERYWHERE | (_WITH_AVX512 if "avx512bw" in features else {})


def begin_again(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> None:
    """Where the flag is given and the variables are not set, run this program again with them.

    A processor without AVX2 is refused later, by `require_portable_bits`, when all ranks can end together.
    """
    _, features = processor()
    wanted = variables(features)
    if FLAG not in argv or "avx2" not in features or wanted.items() <= environ.items():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environ, **wanted})


def require_portable_bits(environ: Mapping[str, str] = os.environ) -> None:
    """Raise where this process does not compute so.

    Raises:
        UserError: the processor cannot, or the libraries were loaded before they were told.
    """
    name, features = processor()
    if "avx2" not in features:
        raise UserError(f"{FLAG} is for x86 processors with AVX2; this is {name}", fix="leave it out")
    wanted = variables(features)
    if missing := {key: value for key, value in wanted.items() if environ.get(key) != value}:
        settings = " ".join(f"{key}='{value}'" for key, value in missing.items())
        raise UserError(
            f"{FLAG}: this Python was not started for it",
            fix=f"give the flag to train.py on the command line too, or start Python with {settings}",
        )
