"""Write a trained model for other programs: ``horovod-yolo export``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from horovod_yolo.assembly.build import round_to_stride
from horovod_yolo.assembly.given_weights import load_weights
from horovod_yolo.assembly.model import as_trained
from horovod_yolo.config.ranges import check_ranges
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.export.about import About
from horovod_yolo.export.checking import difference, require_close
from horovod_yolo.export.formats import OPENVINO_FOLDER, OPENVINO_SUFFIXES
from horovod_yolo.export.onnx_file import OnnxSettings, onnx_bytes, with_suppression
from horovod_yolo.export.onnx_run import OnnxRunner
from horovod_yolo.export.openvino_file import OpenVinoRunner, openvino_parts
from horovod_yolo.export.packages import SIMPLIFIER, TO_WRITE, require
from horovod_yolo.export.running import ExportedFile
from horovod_yolo.export.safetensors_file import safetensors_bytes
from horovod_yolo.export.torchscript_file import TorchScriptRunner, torchscript_bytes
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.io.atomic import replacing
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds

log = logging.getLogger(__name__)
GRAPHS = ("onnx", "openvino", "torchscript")  # formats that hold what is computed, not the weights alone
THROUGH_ONNX = ("onnx", "openvino")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Flags of ``horovod-yolo export``."""

    weights: str
    format: tuple[str, ...] = ("onnx",)
    imgsz: tuple[int, ...] = ()
    batch_size: int = 1
    dynamic: bool = False
    half: bool = False
    simplify: bool = False
    opset: int = OnnxSettings.opset
    nms: bool = False
    conf_thres: float = 0.25
    iou_thres: float | None = None  # as the model's family has it in prediction
    max_det: int = 300
    multi_label: bool = False
    head: str = ""
    data: str = ""
    out: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, {"batch_size": 1, "max_det": 1}, ("conf_thres", "iou_thres"))
        for name in self.format:
            if name not in TO_WRITE:
                raise UserError(f"--format {name}: no such format", fix=f"there are {', '.join(TO_WRITE)}")
        if not 0 <= len(self.imgsz) <= 2 or any(side < 1 for side in self.imgsz):
            raise UserError(f"--imgsz {self.imgsz}", fix="give one size or two, height and width in pixels")
        self._require_use(("dynamic", "half", "batch_size"), GRAPHS)
        self._require_use(("nms", "simplify", "opset"), THROUGH_ONNX)

    def _require_use(self, flags: tuple[str, ...], by: tuple[str, ...]) -> None:
        defaults = {name: type(self).__dataclass_fields__[name].default for name in flags}
        given = [name for name in flags if getattr(self, name) != defaults[name]]
        if given and not set(self.format) & set(by):
            flag = given[0].replace("_", "-")
            raise UserError(
                f"--{flag} and --format {','.join(self.format)}", fix=f"it is for {' and '.join(by)}"
            )

    @property
    def settings(self) -> OnnxSettings:
        """How ONNX is written."""
        return OnnxSettings(opset=self.opset, simplify=self.simplify)

    def suppression(self, usual_iou: float) -> Thresholds | None:
        """What is to be in the file, if anything."""
        if not self.nms:
            return None
        return Thresholds(
            confidence=self.conf_thres,
            iou=usual_iou if self.iou_thres is None else self.iou_thres,
            most=self.max_det,
            multi_label=self.multi_label,
        )


def export(options: ExportOptions, comm: Communicator) -> list[Path]:
    """Write the files, on rank 0. *Collective.*

    Returns:
        Their paths, in the order of ``options.format``.

    Raises:
        UserError: on all ranks alike: a package or the weights are missing, a flag does not fit, a file
            cannot be written or does not compute what the model does.
    """
    return on_rank_0(comm, lambda: _exported(options))


def _exported(options: ExportOptions) -> list[Path]:
    simplifier = (SIMPLIFIER,) if options.simplify else ()
    for name in options.format:
        require((*TO_WRITE[name], *(simplifier if name in THROUGH_ONNX else ())), f"--format {name}")
    settings = options.settings
    source = Path(options.weights)
    state = load_weights(source)
    model, about = _model(options, state)
    plain = replace(about, suppression=None)
    write: dict[str, Callable[[], dict[str, bytes]]] = {
        "onnx": lambda: {".onnx": _onnx(model, about, settings, str(source))},
        "openvino": lambda: _openvino(model, about, settings, str(source)),
        "torchscript": lambda: {".torchscript": _torchscript(model, plain, str(source))},
        "safetensors": lambda: {".safetensors": safetensors_bytes(model, plain)},
    }
    folder = Path(options.out) if options.out else source.parent
    return [_written(folder, source, write[name]()) for name in dict.fromkeys(options.format)]


def _model(options: ExportOptions, state: dict[str, Any]) -> tuple[Detector, About]:
    model, config, names = as_trained(state, options.head)
    stride = max(model.strides)
    sides = options.imgsz or (config.imgsz,)
    height, width = (round_to_stride(side, stride) for side in (sides[0], sides[-1]))
    about = About(
        model=model.name,
        names=names,
        stride=stride,
        imgsz=(height, width),
        batch=0 if options.dynamic else options.batch_size,
        precision="fp16" if options.half else "fp32",
        head=model.head.used,
        finds_once=model.head.finds_once,
        suppression=options.suppression(recipe_of(model.name).iou_of_prediction),
        license=str(state.get("license", "")),
        data=config.data,
        class_map=tuple(config.class_map),
    )
    return model, about


def _onnx(model: Detector, about: About, settings: OnnxSettings, source: str) -> bytes:
    """All boxes first: they are held against the model's; then what is to be added."""
    everything = onnx_bytes(model, replace(about, suppression=None), settings)
    runner = OnnxRunner(ExportedFile(source, "onnx", (everything,)), gpu=None, must=False, threads=1)
    found = difference(model, runner, about)
    require_close(found, about, source)
    log.info("onnx: as the model, in ONNX Runtime: %s", found)
    return with_suppression(everything, about) if about.suppression else everything


def _openvino(model: Detector, about: About, settings: OnnxSettings, source: str) -> dict[str, bytes]:
    plain = replace(about, suppression=None)
    everything = onnx_bytes(model, plain, settings)
    file = ExportedFile(source, "openvino", openvino_parts(everything, plain))
    found = difference(model, OpenVinoRunner(file, threads=1), plain)
    require_close(found, plain, source)
    log.info("openvino: as the model: %s", found)
    if about.suppression:
        file = replace(file, parts=openvino_parts(with_suppression(everything, about), about))
    return dict(zip(OPENVINO_SUFFIXES, file.parts, strict=True))


def _torchscript(model: Detector, about: About, source: str) -> bytes:
    content = torchscript_bytes(model, about)
    found = difference(model, TorchScriptRunner(ExportedFile(source, "torchscript", (content,))), about)
    require_close(found, about, source)
    log.info("torchscript: as the model: %s", found)
    return content


def _written(folder: Path, source: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by their suffixes. Several are one model, and have a folder of their own.

    Returns:
        The file, or the folder.
    """
    if len(files) > 1:
        folder = folder / f"{source.stem}{OPENVINO_FOLDER}"
    targets = {folder / f"{source.stem}{suffix}": content for suffix, content in files.items()}
    for target, content in targets.items():
        if target.resolve() == source.resolve():
            raise UserError("this is the file to export", where=source, fix="name another folder with --out")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as file:
                file.write(content)
        except OSError as error:
            fix = "name another folder with --out"
            raise UserError(error.strerror or str(error), where=target, fix=fix) from None
    return folder if len(files) > 1 else next(iter(targets))
