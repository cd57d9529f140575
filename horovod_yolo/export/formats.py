"""Which exported files there are, and what reads each."""

from __future__ import annotations

from pathlib import Path

import torch

from horovod_yolo.core.errors import UserError
from horovod_yolo.export.onnx_run import OnnxRunner
from horovod_yolo.export.openvino_file import OpenVinoRunner
from horovod_yolo.export.running import ExportedFile, Runner
from horovod_yolo.export.torchscript_file import TorchScriptRunner
from horovod_yolo.io.files import read_bytes

KINDS = {".onnx": "onnx", ".torchscript": "torchscript", ".xml": "openvino"}
OPENVINO_FOLDER, OPENVINO_SUFFIXES = "_openvino_model", (".xml", ".bin")  # graph and weights
OTHERS = {
    ".engine": "TensorRT",
    ".tflite": "TensorFlow Lite",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
    ".pb": "TensorFlow",
}
LARGEST_FILE = 2 << 30  # bytes, as ONNX's own format has it


def exported_kind(path: Path) -> str:
    """``onnx`` and so on; empty for what is no exported file. Of the file only the name is looked at.

    Raises:
        UserError: it is one that nothing here can run.
    """
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise UserError(
            f"files of {OTHERS[suffix]} are not run here", where=path, fix="use best.pt or an ONNX file"
        )
    return "openvino" if path.name.endswith(OPENVINO_FOLDER) else KINDS.get(suffix, "")


def read_exported(path: Path) -> ExportedFile | None:
    """The file, or None where it is none of the exported ones.

    Raises:
        UserError: it cannot be read.
    """
    kind = exported_kind(path)
    if not kind:
        return None
    try:
        parts = [read_bytes(one, LARGEST_FILE) for one in (_openvino(path) if kind == "openvino" else [path])]
        return ExportedFile(str(path), kind, tuple(parts))
    except OSError as error:
        where = f"; looked for {path.absolute()}" if isinstance(error, FileNotFoundError) else ""
        raise UserError(
            f"{error.strerror or error}{where}", where=path, fix="name an exported file"
        ) from None


def _openvino(path: Path) -> list[Path]:
    """The two files of a folder or a graph."""
    graphs = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    if len(graphs) != 1:
        what = f"{len(graphs)} .xml files in this folder"
        raise UserError(what, where=path, fix="name the one, whose .bin lies beside it")
    return [graphs[0].with_suffix(suffix) for suffix in OPENVINO_SUFFIXES]


def opened_runner(file: ExportedFile, device: torch.device, *, must: bool) -> Runner:
    """A file made ready on a device.

    Args:
        file: as it was read.
        device: of this rank.
        must: nothing but this device will do; else a GPU that the file's program cannot use is left alone.

    Raises:
        UserError: its program is not installed, or refuses it, or cannot use the device.
    """
    gpu = device.index or 0 if device.type == "cuda" else None
    if file.kind == "onnx":
        return OnnxRunner(file, gpu=gpu, must=must, threads=torch.get_num_threads())
    if gpu is not None and must:
        fix = "use --device cpu, or an ONNX file"
        raise UserError("this file computes on the CPU", where=file.path, fix=fix)
    if file.kind == "openvino":
        return OpenVinoRunner(file, threads=torch.get_num_threads())
    return TorchScriptRunner(file)
