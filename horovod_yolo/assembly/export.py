"""Write a trained model for other programs: ``horovod-yolo export``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from horovod_yolo.assembly.build import build_evaluation_loader
from horovod_yolo.assembly.data import annotation_folder
from horovod_yolo.assembly.given_weights import load_weights
from horovod_yolo.assembly.input_size import round_to_stride
from horovod_yolo.assembly.model import as_trained
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.shared_annotations import shared_annotations
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.config.ranges import check_ranges
from horovod_yolo.core.errors import UserError
from horovod_yolo.data.formats import LabelRules
from horovod_yolo.data.spec import load_data_yaml
from horovod_yolo.distributed.agreement import on_rank_0
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.export.about import About
from horovod_yolo.export.checking import difference, require_close
from horovod_yolo.export.formats import OPENVINO_FOLDER, OPENVINO_SUFFIXES
from horovod_yolo.export.onnx_file import OnnxSettings, onnx_bytes, with_suppression
from horovod_yolo.export.onnx_run import OnnxRunner
from horovod_yolo.export.openvino_file import OpenVinoRunner, openvino_parts
from horovod_yolo.export.packages import TO_WRITE, require
from horovod_yolo.export.quantised import quantised
from horovod_yolo.export.running import ExportedFile, Runner
from horovod_yolo.export.safetensors_file import safetensors_bytes
from horovod_yolo.export.torchscript_file import TorchScriptRunner, torchscript_bytes
from horovod_yolo.families.zoo import recipe_of
from horovod_yolo.io.atomic import replacing
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds

log = logging.getLogger(__name__)
GRAPHS = ("onnx", "openvino", "torchscript")  # formats that hold what is computed, not the weights alone
INT8 = "_int8"  # behind the name of such a file
IMAGES_TO_SCALE_BY = 128
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
    int8: bool = False
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
        if self.int8 and (self.half or not self.data):
            fix = "leave one out" if self.half else "name images to scale it by: --data data.yaml"
            raise UserError(f"--int8 {'and --half' if self.half else 'without --data'}", fix=fix)
        self._require_use(("dynamic", "half", "batch_size"), GRAPHS)
        self._require_use(("int8", "nms", "simplify", "opset"), THROUGH_ONNX)

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
    if options.int8:
        options = replace(options, data=data_here(options.data, comm))
    paths = on_rank_0(comm, lambda: _exported(options))
    if options.int8:
        _say_what_is_lost(options, paths, comm)
    return paths


def _say_what_is_lost(options: ExportOptions, paths: Sequence[Path], comm: Communicator) -> None:
    """Score the model and its int8 files on the same inputs. *Collective.*"""
    side = max(options.imgsz, default=0)
    usual = ValOptions(weights=options.weights, data=options.data, head=options.head, rect=False, workers=0)
    usual = replace(usual, device="cpu", imgsz=side)
    if options.nms:
        usual = replace(usual, conf_thres=options.conf_thres, iou_thres=options.iou_thres)
    before = validate(usual, comm)[0].summary.map50_95
    for file in (path for path in paths if INT8 in path.name.removeprefix(Path(options.weights).stem)):
        whole = replace(usual, weights=str(file), imgsz=side if options.dynamic else 0)
        after = validate(whole, comm)[0].summary.map50_95
        if comm.rank == 0:
            words = "%s: mAP50-95 %.4f, the model's %.4f: %.4f lost"
            log.info(words, file.name, after, before, before - after)


def _exported(options: ExportOptions) -> list[Path]:
    for name in options.format:
        also = options.settings.packages if name in THROUGH_ONNX else ()
        require((*TO_WRITE[name], *also), f"--format {name}")
    source = Path(options.weights)
    state = load_weights(source)
    model, about = _model(options, state)
    plain = replace(about, suppression=None)
    # OpenVINO's files are made of the ONNX file too.
    as_onnx = cache(lambda: onnx_bytes(model, plain, options.settings))
    as_int8 = cache(lambda: quantised(as_onnx(), plain, _images_to_scale_by(options, about)))
    in_int8 = as_int8 if options.int8 else None
    write: dict[str, Callable[[], dict[str, bytes]]] = {
        "onnx": lambda: _onnx(model, about, as_onnx(), in_int8, str(source)),
        "openvino": lambda: _openvino(model, about, as_onnx(), in_int8, str(source)),
        "torchscript": lambda: {".torchscript": _torchscript(model, plain, str(source))},
        "safetensors": lambda: {".safetensors": safetensors_bytes(model, plain)},
    }
    folder = Path(options.out) if options.out else source.parent
    written = []
    for name in dict.fromkeys(options.format):
        stem = source.stem + INT8 * (options.int8 and name in THROUGH_ONNX)
        written.append(_written(folder, source, stem, write[name]()))
    return written


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


def _require_as_model(model: Detector, runner: Runner, about: About, source: str, words: str) -> None:
    """Raise `UserError` where a file that gives all boxes does not compute what the model does."""
    found = difference(model, runner, about)
    require_close(found, about, source)
    log.info("%s: %s", words, found)


def _onnx(
    model: Detector, about: About, everything: bytes, in_int8: Callable[[], bytes] | None, source: str
) -> dict[str, bytes]:
    """All boxes first: they are held against the model's; then what is to be added."""
    plain = replace(about, suppression=None)
    runner = OnnxRunner(ExportedFile(source, "onnx", (everything,)), gpu=None, must=False, threads=1)
    _require_as_model(model, runner, plain, source, "onnx: as the model, in ONNX Runtime")
    return {".onnx": _finished(about, everything, in_int8)[1]}


def _finished(about: About, everything: bytes, in_int8: Callable[[], bytes] | None) -> tuple[About, bytes]:
    """An ONNX file that gives all boxes as it is wanted: in integers, with suppression."""
    if in_int8:
        about, everything = replace(about, precision="int8"), in_int8()
    return about, with_suppression(everything, about) if about.suppression else everything


def _images_to_scale_by(options: ExportOptions, about: About) -> Iterator[NDArray[np.uint8]]:
    """Whole batches of the first images of the data's ``train``, (B, 3, H, W)."""
    alone = LocalCommunicator()
    spec = load_data_yaml(Path(options.data), LabelRules(about.class_map, False))
    annotations = shared_annotations(spec, "train", alone, annotation_folder(""))
    size = about.batch or 1
    loader = build_evaluation_loader(
        annotations,
        alone,
        imgsz=max(about.imgsz),
        stride=about.stride,
        batch=size,
        workers=0,
        pin_memory=False,
        shape=about.imgsz,
        antialias=recipe_of(about.model).averages_areas,
    )
    try:
        whole = (batch.images.numpy() for batch in loader.epoch(0) if len(batch) == size)
        yield from islice(whole, math.ceil(IMAGES_TO_SCALE_BY / size))
    finally:
        loader.close()


def _openvino(
    model: Detector, about: About, everything: bytes, in_int8: Callable[[], bytes] | None, source: str
) -> dict[str, bytes]:
    """The same of the ONNX file as OpenVINO reads it, integers included."""
    plain = replace(about, suppression=None)
    file = ExportedFile(source, "openvino", openvino_parts(everything, plain))
    _require_as_model(model, OpenVinoRunner(file, threads=1), plain, source, "openvino: as the model")
    about, content = _finished(about, everything, in_int8)
    parts = file.parts if content is everything else openvino_parts(content, about)
    return dict(zip(OPENVINO_SUFFIXES, parts, strict=True))


def _torchscript(model: Detector, about: About, source: str) -> bytes:
    content = torchscript_bytes(model, about)
    runner = TorchScriptRunner(ExportedFile(source, "torchscript", (content,)))
    _require_as_model(model, runner, about, source, "torchscript: as the model")
    return content


def _written(folder: Path, source: Path, stem: str, files: Mapping[str, bytes]) -> Path:
    """Write files by their suffixes. Several are one model, and have a folder of their own.

    Returns:
        The file, or the folder.
    """
    if len(files) > 1:
        folder = folder / f"{stem}{OPENVINO_FOLDER}"
    targets = {folder / f"{stem}{suffix}": content for suffix, content in files.items()}
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
