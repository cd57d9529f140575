"""An ONNX file as a function, by ONNX Runtime."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from horovod_yolo.core.errors import UserError
from horovod_yolo.core.text import one_line
from horovod_yolo.core.types import Floats
from horovod_yolo.export.packages import TO_READ, require
from horovod_yolo.export.running import ExportedFile, Sides, refused

log = logging.getLogger(__name__)
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
# The key that says so, as protobuf writes it, whose numbers may have more bytes than they need.
_ELSEWHERE = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
_OF_RUNTIME = b"ORTM"  # where its own format has its mark, in which weights may be elsewhere in other words
ERRORS_ONLY = 3  # of ONNX Runtime's levels: what goes wrong is raised, and said in our line


class OnnxRunner:
    """See `Runner`."""

    def __init__(self, file: ExportedFile, *, gpu: int | None, must: bool, threads: int) -> None:
        """Make it ready.

        Args:
            file: as it was read.
            gpu: its number; None: the CPU.
            must: it must be the GPU, if there is one; else the CPU where this ONNX Runtime has no CUDA.
            threads: of the CPU.

        Raises:
            UserError: no ONNX Runtime, or one without CUDA where it must have it, or it refuses the file.
        """
        require(TO_READ["onnx"], file.path)
        _require_whole(file)
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self._path = file.path
        known = (kind for kind in vars(state).values() if isinstance(kind, type))
        self._failures: tuple[type[Exception], ...] = (
            *(kind for kind in known if issubclass(kind, Exception)),
            *(RuntimeError, ValueError),
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        providers = _providers(gpu, must, file.path)
        try:
            self._session = onnxruntime.InferenceSession(file.parts[0], options, providers=providers)
            self.texts: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except self._failures as error:
            raise refused(file.path, error) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.sides = _sides(inputs, file.path)
        self._input, self._outputs = inputs[0].name, [one.name for one in outputs]

    def __call__(self, images: Floats) -> tuple[Floats, ...]:
        """See `Runner`.

        Raises:
            UserError: the file cannot be computed.
        """
        try:
            found = self._session.run(self._outputs, {self._input: np.ascontiguousarray(images)})
        except self._failures as error:
            raise refused(self._path, error) from None
        return tuple(found)


def _require_whole(file: ExportedFile) -> None:
    """Raise where weights are to come from elsewhere: ONNX Runtime would read any file of the reader's."""
    if file.parts[0][4:8] == _OF_RUNTIME:
        fix = "use the ONNX file that it was made of"
        raise UserError("it is in ONNX Runtime's own format", where=file.path, fix=fix)
    if _ELSEWHERE.search(file.parts[0]):
        fix = "export it again, into one file"
        raise UserError("it names another file, from which its weights are to come", where=file.path, fix=fix)


def _providers(gpu: int | None, must: bool, path: str) -> list[Any]:
    """What computes, best first."""
    import onnxruntime

    if gpu is not None and CUDA in onnxruntime.get_available_providers():
        return [(CUDA, {"device_id": gpu}), CPU]
    if gpu is not None and must:
        fix = "pip install onnxruntime-gpu in its place, or use --device cpu"
        raise UserError("this onnxruntime has no CUDA", where=path, fix=fix)
    if gpu is not None:
        log.warning("%s: this onnxruntime has no CUDA: the CPU computes", path)
    return [CPU]


def _sides(inputs: list[Any], path: str) -> Sides:
    """What the one input must be like; names of dimensions are 0."""
    if len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4:
        images, channels, height, width = (side if type(side) is int else 0 for side in inputs[0].shape)
        if channels in (0, 3):
            return images, height, width
    known = ", ".join(f"{one.type} {one.shape}" for one in inputs)
    raise UserError(
        f"it takes {one_line(known)}, not float32 images (B, 3, H, W)",
        where=path,
        fix="use a file that horovod-yolo export wrote",
    )
