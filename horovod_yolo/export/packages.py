"""The packages that a format needs, asked for before any work begins."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from horovod_yolo.core.errors import UserError

# Modules, by what they are needed for; pip's names are the same.
TO_WRITE = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "onnxruntime", "openvino"),
    "safetensors": ("safetensors",),
    "torchscript": (),
}
SIMPLIFIER = "onnxslim"
NEWER_EXPORTER = "onnxscript"  # what PyTorch's newer exporter writes with
TO_READ = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "torchscript": ()}


def require(needed: Iterable[str], what: str) -> None:
    """Raise `UserError` with pip's command where one of the packages is missing."""
    missing = [name for name in dict.fromkeys(needed) if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{what} needs {' and '.join(missing)}, which {are} not installed",
            fix=f"pip install {' '.join(missing)}",
        )
