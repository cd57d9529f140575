"""An ONNX file whose convolutions compute in 8-bit integers, scaled to what they see of some images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.core.types import Floats
from horovod_yolo.export.about import About
from horovod_yolo.export.onnx_file import INPUT, described


def quantised(content: bytes, about: About, batches: Iterable[NDArray[np.uint8]]) -> bytes:
    """A float32 file of `onnx_bytes` with convolutions in int8.

    Weights are scaled by channel and have 7 bits: on CPUs without VNNI the sum of two 8-bit products may
    overflow. What decodes boxes stays in float32.

    Args:
        content: of the file.
        about: what is said of the result.
        batches: (B, 3, H, W) images as the file takes them, typical of those to come.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        with _without_advice():
            quantize_static(
                before,
                after,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        proto = onnx.load(after)
    del proto.metadata_props[:]
    return described(proto, replace(about, precision="int8"))


class _Reader:
    """Gives inputs one by one, then None, as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(batches)

    def get_next(self) -> dict[str, Floats] | None:
        """The next input by its name."""
        images = next(self._batches, None)
        return None if images is None else {INPUT: images.astype(np.float32) / np.float32(255)}


@contextmanager
def _without_advice() -> Iterator[None]:
    """ONNX Runtime advises to fuse batch norm first, which is done, in a warning of nobody's logger."""

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(is_no_advice)
