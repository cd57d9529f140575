"""The same from Python: ``YOLO("yolov5n").train(data="digits/data.yaml", epochs=3)``.

A script that calls this may be launched on several ranks, as ``train.py`` is; `YOLO.train` and `YOLO.val`
are then *collective*. What they raise is raised on all ranks alike, and a script may catch it: `UserError`
(a mistake in flags, files or data), `StoppedError`, `NonFiniteError`, `UnwrittenError`. A rank that fails by
itself, also in the script's own lines, says so and ends the job.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from horovod_yolo.assembly.build import round_to_stride
from horovod_yolo.assembly.device import arithmetic, choose_device, choose_precision
from horovod_yolo.assembly.job import join_as_script, log_to_files, require_fitting_launch
from horovod_yolo.assembly.model import trained_model
from horovod_yolo.assembly.run import new_run
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.config.keywords import device_name, prediction_options, training_argv, validation_options
from horovod_yolo.config.load import config_from_flags, train_parser
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import NonFiniteError, StoppedError, UnwrittenError, UserError
from horovod_yolo.core.types import Detections
from horovod_yolo.data.given import Given, one_by_one, pixels
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.evaluation.predict import predict_images
from horovod_yolo.families import zoo
from horovod_yolo.metrics.scores import metrics_of
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest

__all__ = ["YOLO", "NonFiniteError", "StoppedError", "UnwrittenError", "UserError"]


class YOLO:
    """A detector: a new model by name (``yolov5n``), or the weights of a run (a ``.pt`` file).

    Raises:
        UserError: no such model or no usable file.
    """

    def __init__(self, model: str | Path) -> None:
        self.weights = Path(model) if Path(model).suffix == ".pt" else None
        self.name = trained_model(self.weights)[0].name if self.weights else zoo.model_name(str(model))

    def train(self, *, data: str | Path, **flags: Any) -> dict[str, Any]:
        """Train, from the weights where there are some, and go on with the best of the run. *Collective.*

        Called in the main thread it listens for requests to stop while it trains: SIGTERM, SIGUSR1 and
        SIGINT (Ctrl-C), of which a second SIGINT ends the process at once. Before and after, the script's
        own handlers hold. In another thread it leaves signals alone, as Python can hear them in the main
        thread only.

        Args:
            data: a data.yaml.
            flags: those of ``train.py`` with underscores: ``epochs=3, batch_size=8, cos_lr=True``, and
                Ultralytics' ``batch, amp, val, plots``. None is as if it was not given.

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
        with join_as_script().on_ranks() as comm:
            config = together(comm, lambda: self._settings({**flags, "data": data}))
            log_to_files(comm, config.log_dir, as_script=True)
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

    def _settings(self, flags: dict[str, Any]) -> TrainConfig:
        if flags.get("resume"):
            raise UserError("resume is not for a new run", fix="use train.py --resume")
        start = {"weights": str(self.weights)} if self.weights else {"cfg": self.name}
        parser = train_parser("train")
        config = config_from_flags(vars(parser.parse_strictly(training_argv(parser, {**start, **flags}))))
        require_fitting_launch(config.elastic)
        return config

    def val(self, data: str | Path | None = None, **options: Any) -> dict[str, Any]:
        """Score the weights on ``data``, by default the set trained on. *Collective.*

        Args:
            data: a data.yaml.
            options: fields of `ValOptions`: ``imgsz=320, task="test"``, and Ultralytics' ``batch, conf, iou,
                split``.

        Returns:
            ``precision, recall, mAP50, mAP50-95, per_class, val_loss`` and more.

        Raises:
            UserError: a mistake in the options or the data, or no weights yet.
        """
        with join_as_script().on_ranks() as comm:
            evaluation, names = validate(together(comm, lambda: self._options(data, options)), comm)
        return metrics_of(evaluation, names)

    def _options(self, data: str | Path | None, options: dict[str, Any]) -> ValOptions:
        known = {f.name for f in fields(ValOptions)} - {"weights", "data"}
        named = validation_options(options, known)
        return ValOptions(weights=str(self._trained()), data=str(data or ""), **named)

    def predict(
        self, images: Given | Iterable[Given], *, imgsz: int = 0, device: Any = "", **options: Any
    ) -> list[Detections]:
        """Find objects, on this rank alone: one result an image; boxes are in pixels of the images.

        Args:
            images: a path, a Pillow image, an (H, W, 3) uint8 RGB array, several of them, or a folder.
            imgsz: longest side of an image in the network's input, pixels; 0: as trained.
            device: ``"cpu"`` or the number of a GPU; empty: this rank's GPU where there are some.
            options: ``conf, iou, max_det``, or ``conf_threshold, iou_threshold, max_detections`` as
                `predict_images` calls them; ``rect=False`` for square inputs instead of the smallest
                rectangles, ``batch`` for the images that go through the network at once.

        Raises:
            UserError: an unknown option, an unusable image, or no weights yet.
        """
        named = prediction_options(options)
        model, trained, _ = trained_model(self._trained())
        precision = choose_precision("auto", choose_device(device_name(device), launcher().local_rank or 0))
        side = round_to_stride(imgsz or trained.imgsz, max(model.strides))
        given = map(pixels, one_by_one(images))
        with arithmetic("auto"):
            return predict_images(model.to(precision.device), given, side, precision, **named)

    def _trained(self) -> Path:
        if self.weights is None:
            raise UserError(f"{self.name} has no weights yet", fix="train it first, or open a best.pt")
        return self.weights
