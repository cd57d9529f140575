"""A model as an ONNX file."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from horovod_yolo.core.errors import UserError
from horovod_yolo.export.about import About
from horovod_yolo.export.checking import example_inputs
from horovod_yolo.export.network import ExportedNetwork
from horovod_yolo.export.packages import NEWER_EXPORTER, SIMPLIFIER
from horovod_yolo.export.suppression_graph import suppression_model
from horovod_yolo.models.detector import Detector

IR_VERSION = 10  # of the file format; the runtimes of 2024 read it
LEAST_OPSET, USUAL_OPSET, MOST_TRACED_OPSET, MOST_OPSET = 16, 17, 20, 23
MOST_STRIDES = 1 << 10
INPUT, BOXES, SCORES, DETECTIONS = "images", "boxes", "scores", "detections"


@dataclass(frozen=True, kw_only=True)
class OnnxSettings:
    """How a file is written.

    Attributes:
        opset: version of ONNX's operators.
        simplify: let onnxslim fold and join what it can.
    """

    opset: int = USUAL_OPSET
    simplify: bool = False

    def __post_init__(self) -> None:
        if not LEAST_OPSET <= self.opset <= MOST_OPSET:
            fix = f"use one of {LEAST_OPSET} to {MOST_OPSET}"
            raise UserError(f"--opset is {self.opset}", fix=fix)

    @property
    def packages(self) -> tuple[str, ...]:
        """What is needed beside those of the format."""
        newer = (NEWER_EXPORTER,) if self.opset > MOST_TRACED_OPSET else ()
        return (*newer, *((SIMPLIFIER,) if self.simplify else ()))


def onnx_bytes(model: Detector, about: About, settings: OnnxSettings) -> bytes:
    """The content of a file that gives all boxes, whatever ``about`` says of suppression.

    Args:
        model: stays as it is; on the CPU.
        about: what the file is to be: its input and number format.
        settings: how it is written.
    """
    import onnx

    proto = onnx.load_from_string(_traced(model, about, settings.opset))
    proto.ir_version = IR_VERSION
    if settings.simplify:
        import onnxslim

        proto = onnxslim.slim(proto)
    return described(proto, about)


def with_suppression(content: bytes, about: About) -> bytes:
    """A file of `onnx_bytes` that gives the detections which ``about.suppression`` leaves."""
    import onnx
    import onnx.compose

    assert about.suppression is not None
    proto = onnx.load_from_string(content)
    del proto.metadata_props[:]
    opset = next(one.version for one in proto.opset_import if not one.domain)
    tail = suppression_model(
        about.suppression, len(about.names), opset, proto.ir_version, once=about.finds_once
    )
    tail = onnx.compose.add_prefix(tail, "suppression/", rename_inputs=False, rename_outputs=False)
    tail.graph.input[0].name, tail.graph.input[1].name = BOXES, SCORES
    joined = onnx.compose.merge_models(proto, tail, io_map=[(BOXES, BOXES), (SCORES, SCORES)])
    return described(joined, about)


def described(proto: Any, about: About) -> bytes:
    """The content of a file with what ``about`` says in its metadata; nothing is said there before."""
    import onnx

    onnx.helper.set_model_props(proto, about.as_texts())
    _name_sizes(proto, about)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _name_sizes(proto: Any, about: About) -> None:
    """Exporters know of few sizes of the outputs what they are."""
    batch: int | str = about.batch or "batch"
    sizes: dict[str, tuple[int | str, ...]] = {
        BOXES: (batch, "places", 4),
        SCORES: (batch, "places", len(about.names)),
        DETECTIONS: (batch, "rows", 6),
    }
    for output in proto.graph.output:
        for dimension, size in zip(output.type.tensor_type.shape.dim, sizes[output.name], strict=True):
            if isinstance(size, int):
                dimension.dim_value = size
            elif not dimension.dim_value:
                dimension.dim_param = size


def _traced(model: Detector, about: About, opset: int) -> bytes:
    net = ExportedNetwork(model, half=about.precision == "fp16")
    images = next(example_inputs(about))
    with warnings.catch_warnings():
        # PyTorch's own affairs: it says that tracing is old, and what of itself it will remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)  # it is left out
        # Said of each size that steers the code, also of those that no input changes: the bins of a side.
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        export = _by_tracing if opset <= MOST_TRACED_OPSET else _by_torch_export
        return export(net, images, about, opset)


def _by_tracing(net: ExportedNetwork, images: Tensor, about: About, opset: int) -> bytes:
    """In a fortieth of the other's time."""
    every = {0: "batch", 1: "places"}
    axes = {INPUT: {0: "batch", 2: "height", 3: "width"}, BOXES: every, SCORES: every}
    buffer = io.BytesIO()
    torch.onnx.export(
        net,
        (images,),
        buffer,  # type: ignore[arg-type]  # a name is not needed
        dynamo=False,
        input_names=[INPUT],
        output_names=[BOXES, SCORES],
        opset_version=opset,
        dynamic_axes=axes if about.dynamic else None,
    )
    return buffer.getvalue()


def _by_torch_export(net: ExportedNetwork, images: Tensor, about: About, opset: int) -> bytes:
    """What PyTorch recommends by now, and the only one for newer operators."""
    batch, rows, columns = (
        torch.export.Dim(name, min=1, max=MOST_STRIDES) for name in ("B", "rows", "columns")
    )
    sides = {0: batch, 2: about.stride * rows, 3: about.stride * columns}
    program = torch.onnx.export(
        net,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=[INPUT],
        output_names=[BOXES, SCORES],
        opset_version=opset,
        dynamic_shapes={INPUT: sides} if about.dynamic else None,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
