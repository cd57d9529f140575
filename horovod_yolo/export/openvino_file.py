"""A model as OpenVINO's two files, and such files as a function on CPUs."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from horovod_yolo.core.types import Floats
from horovod_yolo.export.about import About
from horovod_yolo.export.packages import TO_READ, require
from horovod_yolo.export.running import ExportedFile, Sides, refused

GROUP = "horovod_yolo"  # of the metadata in a file, which others write into too
_TELEMETRY = "openvino_telemetry"


def openvino_parts(onnx: bytes, about: About) -> tuple[bytes, bytes]:
    """The content of the two files, graph and weights, made from an ONNX file."""
    openvino = _openvino()
    model = openvino.Core().read_model(onnx)
    for key, text in about.as_texts().items():
        model.set_rt_info(text, [GROUP, key])
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "m.xml"
        openvino.save_model(model, graph, compress_to_fp16=False)
        return graph.read_bytes(), graph.with_suffix(".bin").read_bytes()


class OpenVinoRunner:
    """See `Runner`."""

    def __init__(self, file: ExportedFile, *, threads: int) -> None:
        """Make it ready.

        Raises:
            UserError: no OpenVINO, or it refuses the file.
        """
        require(TO_READ["openvino"], file.path)
        openvino = _openvino()
        self._path = file.path
        # Else it computes in bfloat16 where the CPU can.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            _require_own_format(file.parts[0])
            core = openvino.Core()
            model = core.read_model(*file.parts)
            self.texts: Mapping[str, str] = _texts(model)
            self.sides = _sides(model)
            self._compiled = core.compile_model(model, "CPU", settings)
        except (RuntimeError, ValueError) as error:
            raise refused(file.path, error) from None

    def __call__(self, images: Floats) -> tuple[Floats, ...]:
        """See `Runner`.

        Raises:
            UserError: the file cannot be computed.
        """
        try:
            found = self._compiled(images)
        except (RuntimeError, ValueError) as error:
            raise refused(self._path, error) from None
        return tuple(np.array(found[output]) for output in self._compiled.outputs)


def _require_own_format(graph: bytes) -> None:
    """Raise where OpenVINO would take it for a file of another kind: ONNX, which may name more files."""
    if not graph.lstrip().startswith((b"<?xml", b"<net")):
        raise ValueError("it is no graph of OpenVINO")


def _texts(model: Any) -> dict[str, str]:
    if not model.has_rt_info([GROUP]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info([GROUP]).value.items()}


def _sides(model: Any) -> Sides:
    if len(model.inputs) == 1 and model.input().partial_shape.rank.get_length() == 4:
        lengths = [0 if side.is_dynamic else side.get_length() for side in model.input().partial_shape]
        if lengths[1] in (0, 3):
            return lengths[0], lengths[2], lengths[3]
    raise ValueError("its input is none of float32 images (B, 3, H, W)")


def _openvino() -> Any:
    """OpenVINO without its telemetry, to which importing it alone is worth a message to its makers."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if it was not installed
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = before
