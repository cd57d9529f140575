"""The same from Python: ``YOLO("yolov5n").train(data="digits/data.yaml", epochs=3)``.

A script that calls this may be launched on several ranks, as ``train.py`` is; `YOLO.train` and `YOLO.val`
are then *collective*. Mistakes are `UserError`, on all ranks alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np

from horovod_yolo.assembly.build import round_to_stride, together
from horovod_yolo.assembly.device import arithmetic, choose_device, choose_precision
from horovod_yolo.assembly.run import new_run, train
from horovod_yolo.assembly.validate import ValOptions, load_detector, validate
from horovod_yolo.config.load import config_from_flags, flags_to_argv, nearest, train_parser
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.core.types import Detections, Image
from horovod_yolo.data.read import ImageError, read_image
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.launched import connect
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.evaluation.predict import predict_images
from horovod_yolo.models.zoo import find_model
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.loop import metrics_of


@cache
def _ranks() -> Communicator:
    """Join the launched job, once: Horovod leaves it when the process ends and cannot join it again."""
    return connect()


class YOLO:
    """A detector: a new model by name (``yolov5n``), or the weights of a run (a ``.pt`` file).

    Raises:
        UserError: no such model or no usable file.
    """

    def __init__(self, model: str | Path) -> None:
        self.weights = Path(model) if Path(model).suffix == ".pt" else None
        self.name = load_detector(self.weights)[0].name if self.weights else find_model(str(model)).name

    def train(self, *, data: str | Path, **flags: Any) -> dict[str, Any]:
        """Train, from the weights where there are some, and go on with the best of the run. *Collective.*

        Called in the main thread it listens for requests to stop while it trains: SIGTERM, SIGUSR1 and
        SIGINT (Ctrl-C), of which a second SIGINT ends the process at once. Before and after, the script's
        own handlers hold. In another thread it leaves signals alone, as Python can hear them in the main
        thread only.

        Args:
            data: a data.yaml.
            flags: those of ``train.py`` with underscores: ``epochs=3, batch_size=8, cos_lr=True``.

        Returns:
            What ``results.json`` holds.

        Raises:
            UserError: a mistake in the flags or the data.
            NonFiniteError: training diverged.
            UnwrittenError: the run is over, but not all of it is on the disk.
            StoppedError: any rank was asked to stop; on all ranks alike, after the step in hand. ``saved``
                tells whether ``train.py --resume`` has the checkpoint of that moment. Where the request came
                after the last step, the run is complete.
        """
        if "resume" in flags:
            raise UserError("resume is not for a new run", fix="use train.py --resume")
        start = {"weights": str(self.weights)} if self.weights else {"cfg": self.name}
        argv = flags_to_argv({**start, **flags, "data": data})
        comm = _ranks()
        config = together(comm, lambda: config_from_flags(vars(train_parser("train").parse_strictly(argv))))
        stop = StopRequest()
        with listening(stop) if current_thread() is main_thread() else nullcontext():
            run = new_run(config, comm)
            results = train(run, comm, stop)
        # After this rank 0 has written the weights that another rank may read.
        asked = comm.allgather_object(stop.asked)
        self.weights = run.folder / "weights" / "best.pt"
        if any(asked):
            raise StoppedError(f"after the last step; the run is complete: {run.folder}", saved=True)
        return results

    def val(self, data: str | Path = "", **options: Any) -> dict[str, Any]:
        """Score the weights on ``data``, by default the set trained on. *Collective.*

        Args:
            data: a data.yaml.
            options: fields of `ValOptions`: ``imgsz=320, task="test"``.

        Returns:
            ``precision, recall, mAP50, mAP50-95, per_class, val_loss`` and more.

        Raises:
            UserError: a mistake in the options or the data, or no weights yet.
        """
        known = [f.name for f in fields(ValOptions)]
        for name in set(options) - set(known):
            raise UserError(f"unknown option {name}", fix=nearest(name, known))
        evaluation, names = validate(
            ValOptions(weights=str(self._trained()), data=str(data), **options), _ranks()
        )
        return metrics_of(evaluation, names)

    def predict(
        self, images: Sequence[str | Path | Image], *, imgsz: int = 0, **options: Any
    ) -> list[Detections]:
        """Find objects, on this rank alone; boxes are in pixels of the images.

        Args:
            images: paths, or (H, W, 3) uint8 RGB arrays.
            imgsz: side of the network's input, pixels; 0: as trained.
            options: ``conf_threshold, iou_threshold, max_detections`` of `predict_images`.

        Raises:
            UserError: an unusable image, or no weights yet.
        """
        model, trained, _ = load_detector(self._trained())
        precision = choose_precision("auto", choose_device("", LocalCommunicator()))
        side = round_to_stride(imgsz or trained.imgsz, max(model.strides))
        pixels = [_pixels(image) for image in images]
        with arithmetic("auto"):
            return predict_images(model.to(precision.device), pixels, side, precision, **options)

    def _trained(self) -> Path:
        if self.weights is None:
            raise UserError(f"{self.name} has no weights yet", fix="train it first, or open a best.pt")
        return self.weights


def _pixels(image: str | Path | Image) -> Image:
    if isinstance(image, (str, Path)):
        try:
            return read_image(Path(image))
        except ImageError as error:
            raise UserError(error.reason, where=error.path, fix="leave it out or replace it") from None
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"an image is {image.dtype} {image.shape}", fix="give (H, W, 3) uint8 RGB")
    return image
