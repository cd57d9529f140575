"""The same from Python: ``YOLO("yolov5n").train(data="digits", epochs=3)``; `YOLO` is in `horovod_yolo` too.

A script that calls this may be launched on several ranks, as ``train.py`` is; `YOLO.train` and `YOLO.val`
are then *collective*. What they raise is raised on all ranks alike, and a script may catch it: `UserError`
(a mistake in flags, files or data), `StoppedError`, `NonFiniteError`, `MemoryShortError`,
`FaultyRankError`, `UnwrittenError`.
A rank that fails by itself, also in the script's own lines, says so and ends the job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from os import PathLike
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Literal, cast, overload

from horovod_yolo.assembly.anew import with_commits
from horovod_yolo.assembly.asked_ranks import AskedRanks
from horovod_yolo.assembly.calls import on_ranks_of
from horovod_yolo.assembly.export import ExportOptions, export
from horovod_yolo.assembly.exported import name_of_exported
from horovod_yolo.assembly.given_weights import model_of_weights, with_model
from horovod_yolo.assembly.job import join_as_script, log_to_files, require_fitting_launch
from horovod_yolo.assembly.looking import look_here, looking_of
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.ready import ready_here
from horovod_yolo.assembly.run import run_of_script
from horovod_yolo.assembly.search import TuneOptions, open_search
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.assembly.train import train
from horovod_yolo.assembly.tune import tune
from horovod_yolo.assembly.validate import ValOptions, validate
from horovod_yolo.assembly.world import World
from horovod_yolo.config.keywords import (
    device_name,
    export_options,
    portable,
    training_argv,
    validation_options,
)
from horovod_yolo.config.load import train_parser
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import (
    FaultyRankError,
    MemoryShortError,
    NonFiniteError,
    RanksFailedError,
    StoppedError,
    UnwrittenError,
    UserError,
)
from horovod_yolo.core.results import Metrics, TrainResults, TuneResults
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import launcher
from horovod_yolo.export.formats import exported_kind
from horovod_yolo.families import zoo
from horovod_yolo.metrics.scores import metrics_of
from horovod_yolo.prediction.result import Result
from horovod_yolo.prediction.sources import Given, find_sources
from horovod_yolo.process.signals import listening
from horovod_yolo.process.stop import StopRequest

WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")

__all__ = [
    "YOLO",
    "FaultyRankError",
    "MemoryShortError",
    "NonFiniteError",
    "RanksFailedError",
    "StoppedError",
    "UnwrittenError",
    "UserError",
]


class YOLO:
    """A detector: a new model by name (``yolov5n``), weights (``best.pt``, published ones), an exported file.

    Rank 0 reads the file of the weights; for `train` and `val` the other ranks need not have it.

    Attributes:
        weights: the file, if any.
        name: of the model; empty on ranks that have not seen the file.

    Raises:
        UserError: no such model or no usable file.
    """

    def __init__(self, model: str | Path) -> None:
        if not isinstance(model, (str, PathLike)):
            raise UserError(
                f"{model!r:.60} is no model", fix="give a name such as yolov5n, or a file of weights"
            )
        path = Path(model)
        self.weights = path if path.suffix in WEIGHTS_SUFFIXES or exported_kind(path) else None
        if self.weights is None:
            self.name = zoo.model_name(str(model))
        elif launcher().rank:
            self.name = ""
        else:
            self.name = name_of_exported(path) or model_of_weights(path)

    def train(
        self,
        *,
        data: str | Path,
        np: int | None = None,
        hosts: str | None = None,
        engine: str | None = None,
        **flags: Any,
    ) -> TrainResults:
        """Train, from the weights where there are some, and go on with the best of the run. *Collective.*

        Where ranks are asked for and no launcher has started any, they are started, as processes of their own
        that do not run the caller's script, and end with the call. ``device=[0, 1]`` asks for a rank each.

        Called in the main thread it listens for requests to stop while it trains: SIGTERM, SIGUSR1 and
        SIGINT (Ctrl-C), of which a second SIGINT ends the process at once. Before and after, the script's
        own handlers hold. In another thread it leaves signals alone, as Python can hear them in the main
        thread only.

        Args:
            data: a data.yaml, or ``"digits"``, the built-in set.
            np: ranks to start; under a launcher those that are there.
            hosts: where they are started, ``"host1:4,host2:4"``: as many as slots, or ``np`` of them.
            engine: what they talk through: ``"horovod"``, ``"torch"``, or auto, which is Horovod where it is
                installed.
            flags: those of ``train.py`` with underscores: ``epochs=3, batch_size=8, cos_lr=True``, and
                Ultralytics' ``batch, amp, val, plots``. ``hyp`` is a file or ``{"lr0": 0.02}``. None is as if
                it was not given.

        Returns:
            What ``results.json`` holds.

        Raises:
            UserError: a mistake in the flags or the data.
            NonFiniteError: training diverged.
            MemoryShortError: a rank lacks memory, also for half as many images at a time.
            FaultyRankError: a rank computes wrongly, as ``check_every`` has found.
            UnwrittenError: the run is over, but not all of it is on the disk.
            StoppedError: any rank was asked to stop; on all ranks alike, after the step in hand. ``saved``
                tells whether ``train.py --resume`` has the checkpoint of that moment. Where the request came
                after the last step, the run is complete.
            RanksFailedError: of ranks that were started here, one failed by itself.
        """
        asked_for = AskedRanks(np, hosts, engine, flags.get("device"))
        if world := asked_for.to_start():
            self._settings({"cfg": self.name, **flags, "data": data})
            return cast(TrainResults, self._on_own_ranks(world, "train", {**flags, "data": data}))
        return cast(TrainResults, self._train(asked_for, {**flags, "data": data}))

    def _train(self, asked_for: AskedRanks, flags: dict[str, Any]) -> dict[str, Any]:
        """As one of the ranks that are there. *Collective.*"""
        with join_as_script().on_ranks() as comm:
            together(comm, asked_for.require_as_launched)
            if isinstance(flags["data"], (str, PathLike)):
                flags["data"] = data_here(str(flags["data"]), comm)
            start = with_model({"weights": str(self.weights)} if self.weights else {"cfg": self.name}, comm)
            given, config = together(comm, lambda: self._settings({**start, **flags}))
            log_to_files(comm, config.log_dir, as_script=True)
            stop = StopRequest()
            with listening(stop) if current_thread() is main_thread() else nullcontext():
                run = run_of_script(given, config, comm)
                results = train(run, comm, stop)
            # After this rank 0 has written the weights that another rank may read.
            asked = comm.allgather_object(stop.asked)
            self.weights = run.folder / "weights" / "best.pt"
            if any(asked):
                raise StoppedError(f"after the last step; the run is complete: {run.folder}", saved=True)
            return results

    def _settings(self, flags: dict[str, Any]) -> tuple[dict[str, Any], TrainConfig]:
        """The flags of a new run, and what follows from them."""
        if flags.get("resume"):
            raise UserError("resume is not for a new run", fix="use train.py --resume")
        config = settings_of(given := self._given(flags))
        require_fitting_launch(config.elastic)
        return given, config

    def _of_tune(self, flags: dict[str, Any]) -> dict[str, Any]:
        """The flags of a search, which are those of training, or of one that goes on."""
        return self._settings(flags)[0] if flags.keys() & {"cfg", "weights"} else self._given(flags)

    def _given(self, flags: dict[str, Any]) -> dict[str, Any]:
        parser = train_parser("train")
        hyp = flags.get("hyp")
        as_it_is = {"hyp": dict(hyp)} if isinstance(hyp, Mapping) else {}  # no command line could have it
        argv = training_argv(parser, {**flags, **dict.fromkeys(as_it_is)}, zoo.hyperparameters())
        return with_commits({**vars(parser.parse_strictly(argv)), **as_it_is})

    def tune(
        self,
        *,
        data: str | Path | None = None,
        trials: int | None = None,
        space: str | Path | Mapping[str, Any] = "",
        prune: bool = True,
        resume: str | Path = "",
        np: int | None = None,
        hosts: str | None = None,
        engine: str | None = None,
        **flags: Any,
    ) -> TuneResults:
        """Search hyperparameters, one training a trial, and go on with the weights of the best. *Collective.*

        Args:
            data: as for `train`; of a search that goes on, only where it is elsewhere now.
            trials: how many settings are tried; 30 of a new search.
            space: a file of ranges, or ``{"lr0": {"low": 0.001, "high": 0.1, "log": True}}``.
            prune: whether trials below the median of the others are ended in the second half of their epochs.
            resume: the folder of a search to go on with, or to join.
            np: as for `train`; ``hosts``, ``engine`` and ``flags``, which are of each training, likewise.
            hosts: see there.
            engine: see there.
            flags: see there.

        Returns:
            The trials, and the hyperparameters of the best: ``model.train(data=..., hyp=found["hyp"])``.

        Raises:
            UserError: a mistake in flags, ranges or data, or Optuna is not installed; others as `train`.
            StoppedError: any rank was asked to stop; ``resume`` goes on.
        """
        asked_for = AskedRanks(np, hosts, engine, flags.get("device"))
        given = flags if data is None else {**flags, "data": data}
        own: dict[str, Any] = {"trials": trials, "space": space, "prune": prune, "resume": str(resume)}
        if world := asked_for.to_start():
            if not resume:
                self._settings({"cfg": self.name, **given})
            return cast(TuneResults, self._on_own_ranks(world, "tune", {**given, **own}))
        return self._tune(asked_for, given, own)

    def _tune(self, asked_for: AskedRanks, given: dict[str, Any], own: dict[str, Any]) -> TuneResults:
        """As one of the ranks that are there. *Collective.*"""
        with join_as_script().on_ranks() as comm:
            together(comm, asked_for.require_as_launched)
            own_model = {"weights": str(self.weights)} if self.weights else {"cfg": self.name}
            start = {} if own["resume"] else with_model(own_model, comm)
            options = together(comm, lambda: TuneOptions(flags=self._of_tune({**start, **given}), **own))
            stop = StopRequest()
            with listening(stop) if current_thread() is main_thread() else nullcontext():
                outcome, _ = tune(open_search(options, comm), comm, stop)
        results = outcome.results()
        self.weights = Path(results["weights"]) if results["weights"] else self.weights
        return results

    def _on_own_ranks(self, world: World, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        returned: dict[str, Any]
        model = str(self.weights or self.name)
        returned, self.weights = on_ranks_of(world, model, call, portable(arguments))
        return returned

    def val(
        self,
        data: str | Path | None = None,
        *,
        np: int | None = None,
        hosts: str | None = None,
        engine: str | None = None,
        **options: Any,
    ) -> Metrics:
        """Score the weights on ``data``, by default the set trained on. *Collective.*

        Args:
            data: a data.yaml.
            np: as for `train`; ``hosts`` and ``engine`` likewise.
            hosts: see there.
            engine: see there.
            options: fields of `ValOptions`: ``imgsz=320, task="test"``, and Ultralytics' ``batch, conf, iou,
                split``.

        Returns:
            ``precision, recall, mAP50, mAP50-95, per_class, val_loss`` and more.

        Raises:
            UserError: a mistake in the options or the data, or no weights yet.
            RanksFailedError: of ranks that were started here, one failed by itself.
        """
        asked_for = AskedRanks(np, hosts, engine, options.get("device"))
        if world := asked_for.to_start():
            self._options(data, options)
            return cast(Metrics, self._on_own_ranks(world, "val", {**options, "data": data}))
        with join_as_script().on_ranks() as comm:
            together(comm, asked_for.require_as_launched)
            evaluation, names = validate(together(comm, lambda: self._options(data, options)), comm)
        return cast(Metrics, metrics_of(evaluation, names))

    def _options(self, data: str | Path | None, options: dict[str, Any]) -> ValOptions:
        known = {f.name for f in fields(ValOptions)} - {"weights", "data"}
        named = validation_options(options, known)
        return ValOptions(weights=str(self._trained()), data=str(data or ""), **named)

    @overload
    def predict(
        self,
        source: Given | Iterable[Given],
        *,
        stream: Literal[False] = False,
        imgsz: int = 0,
        device: Any = "",
        head: str = "",
        data: str | Path = "",
        **options: Any,
    ) -> list[Result]: ...

    @overload
    def predict(
        self,
        source: Given | Iterable[Given],
        *,
        stream: Literal[True],
        imgsz: int = 0,
        device: Any = "",
        head: str = "",
        data: str | Path = "",
        **options: Any,
    ) -> Iterator[Result]: ...

    def predict(
        self,
        source: Given | Iterable[Given],
        *,
        stream: bool = False,
        imgsz: int = 0,
        device: Any = "",
        head: str = "",
        data: str | Path = "",
        **options: Any,
    ) -> list[Result] | Iterator[Result]:
        """Find objects, on this rank alone: one result an image, in the order given.

        Args:
            source: a path, a Pillow image, an (H, W, 3) uint8 RGB array, several of them; a folder, a glob or
                a ``.txt`` list; a video; the number of a camera or the address of a stream.
            stream: give each result when it is there instead of a list at the end. Only so results of videos
                keep their pixels, which `Result.plot` needs, and only so cameras and streams can be used.
            imgsz: longest side of an image in the network's input, pixels; 0: as trained.
            head: of a model with several the one that detects, such as ``"one2many"``; empty: as trained.
            data: a data.yaml, for an exported file that does not name its classes.
            device: ``"cpu"`` or the number of a GPU; empty: this rank's GPU where there are some.
            options: ``conf, iou, max_det``, or ``conf_threshold, iou_threshold, max_detections``;
                ``classes=[0, 2]``, ``agnostic_nms``, ``augment``, ``half``, ``vid_stride`` as the flags of
                ``horovod-yolo predict``; ``rect=False`` for square inputs instead of the smallest rectangles,
                ``batch`` for the images that go through the network at once.

        Returns:
            Results: their ``boxes`` are in pixels of the given images.

        Raises:
            UserError: an unknown option, an unusable image, or no weights yet.
        """
        how, every = looking_of(imgsz, options)
        local_rank = launcher().local_rank or 0
        if isinstance(launcher(), Alone) and "," in device_name(device):
            raise UserError(
                f"device is {device!r:.60}, and predict looks with one",
                fix="name one GPU, or use horovod-yolo predict --device 0,1",
            )
        ready = ready_here(self._trained(), how, local_rank, device_name(device), head, str(data))
        results = look_here(ready, find_sources(source), every=every, live=stream)
        return results if stream else list(results)

    @overload
    def export(self, format: str = "onnx", **options: Any) -> Path: ...

    @overload
    def export(self, format: Sequence[str], **options: Any) -> list[Path]: ...

    def export(self, format: str | Sequence[str] = "onnx", **options: Any) -> Path | list[Path]:
        """Write the weights for other programs. *Collective:* rank 0 writes.

        Args:
            format: ``"onnx"``, ``"openvino"``, ``"torchscript"``, ``"safetensors"``, or several of them.
            options: fields of `ExportOptions`: ``imgsz=(384, 640), dynamic=True, half=True, nms=True``, and
                Ultralytics' ``batch, conf, iou``.

        Returns:
            The file, or for several formats the files.

        Raises:
            UserError: a mistake in the options, a package that is missing, no weights yet.
        """
        with join_as_script().on_ranks() as comm:
            given = {**options, "format": format}
            paths = export(together(comm, lambda: self._export_options(given)), comm)
        return paths[0] if isinstance(format, str) else paths

    def _export_options(self, given: dict[str, Any]) -> ExportOptions:
        known = {f.name for f in fields(ExportOptions)} - {"weights"}
        return ExportOptions(weights=str(self._trained()), **export_options(given, known))

    def _trained(self) -> Path:
        if self.weights is None:
            raise UserError(f"{self.name} has no weights yet", fix="train it first, or open a best.pt")
        return self.weights
