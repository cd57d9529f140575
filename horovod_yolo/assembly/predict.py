"""Find objects in pictures, videos and streams, on any number of ranks: ``horovod-yolo predict``."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from horovod_yolo.assembly.looking import Looking, Ready
from horovod_yolo.assembly.meetings import Background, meetings
from horovod_yolo.assembly.ready import shared_ready
from horovod_yolo.assembly.run_folder import discard_if_empty, new_run_folder
from horovod_yolo.config.ranges import check_ranges
from horovod_yolo.core.errors import StoppedError, UserError
from horovod_yolo.distributed.agreement import on_rank_0, raise_together, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.private import own_folder
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.prediction.drawing import Style
from horovod_yolo.prediction.files import ResultFiles, Saving, drawn_on, output_stems, write_json
from horovod_yolo.prediction.frames import Placed, file_frames
from horovod_yolo.prediction.live import SECONDS_TO_COME_BACK, LiveStream, newest_frames
from horovod_yolo.prediction.predict import detect
from horovod_yolo.prediction.result import Result
from horovod_yolo.prediction.sources import Live, Picture, Source, Video, find_sources
from horovod_yolo.prediction.window import require_window, show
from horovod_yolo.process.stop import StopRequest

log = logging.getLogger(__name__)
MOST_NAMED = 5
JSON_FILE = "predictions.json"


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Flags of ``horovod-yolo predict``; names and defaults are those of YOLOv5's ``detect.py``."""

    weights: str
    source: tuple[str, ...]
    data: str = ""
    head: str = ""
    imgsz: int = 0
    rect: bool = True
    batch_size: int = 8
    conf_thres: float = 0.25
    iou_thres: float | None = None  # as the model's family has it
    max_det: int = 1000
    classes: tuple[int, ...] = ()
    agnostic_nms: bool = False
    augment: bool = False
    device: str = ""
    precision: str = "auto"
    half: bool = False
    vid_stride: int = 1
    reconnect: float = SECONDS_TO_COME_BACK
    view_img: bool = False
    save_txt: bool = False
    save_conf: bool = False
    save_json: bool = False
    save_crop: bool = False
    nosave: bool = False
    line_thickness: int = 0
    hide_labels: bool = False
    hide_conf: bool = False
    project: str = "runs/detect"
    name: str = "exp"
    exist_ok: bool = False

    def __post_init__(self) -> None:
        least = {
            "imgsz": 0,
            "batch_size": 1,
            "max_det": 1,
            "vid_stride": 1,
            "reconnect": 0,
            "line_thickness": 0,
        }
        check_ranges(self, least, ("conf_thres", "iou_thres"))
        if self.save_conf and not self.save_txt:
            raise UserError("--save-conf without --save-txt", fix="add --save-txt, whose files have them")
        if self.half and self.precision not in ("auto", "fp16"):
            raise UserError(f"--half and --precision {self.precision}", fix="give one of them")

    @property
    def looking(self) -> Looking:
        """How to look."""
        return Looking(
            imgsz=self.imgsz,
            rect=self.rect,
            batch=self.batch_size,
            precision=self.precision,
            half=self.half,
            thresholds=Thresholds(
                confidence=self.conf_thres,
                most=self.max_det,
                multi_label=False,
                agnostic=self.agnostic_nms,
            ),
            iou=self.iou_thres,
            classes=self.classes,
            augment=self.augment,
        )

    @property
    def saving(self) -> Saving:
        """What is written."""
        return Saving(
            pictures=not self.nosave,
            txt=self.save_txt,
            conf=self.save_conf,
            crops=self.save_crop,
            json=self.save_json,
            style=Style(self.line_thickness, not self.hide_labels, not self.hide_conf),
        )

    @property
    def writes(self) -> bool:
        """Whether there is anything to write."""
        return not self.nosave or self.save_txt or self.save_json or self.save_crop


@dataclass
class Count:
    """What has been looked at."""

    pictures: int = 0
    frames: int = 0  # images of videos and streams
    objects: int = 0
    seen: set[int] = field(default_factory=set)  # places of the sources that gave an image
    broken: int = 0
    stopped: bool = False  # before all was looked at

    def __str__(self) -> str:
        looked_at = f"{self.pictures} pictures" + f" and {self.frames} images of videos" * bool(self.frames)
        skipped = f"; {self.broken} skipped, which cannot be read" if self.broken else ""
        return f"{looked_at}: {self.objects} objects{skipped}"

    def __add__(self, other: Count) -> Count:
        return Count(
            self.pictures + other.pictures,
            self.frames + other.frames,
            self.objects + other.objects,
            self.seen | other.seen,
            self.broken + other.broken,
            self.stopped or other.stopped,
        )


def predict(options: PredictOptions, comm: Communicator, stop: StopRequest) -> Count:
    """Find objects and write them down. *Collective.*

    Pictures are dealt out one by one; a video or stream is one rank's.

    Returns:
        What all ranks have done.

    Raises:
        UserError: on all ranks alike: a mistake in the flags, or nothing that could be read.
        StoppedError: on all ranks alike: asked to stop before all pictures and videos were looked at.
    """
    if options.view_img:
        together(comm, require_window)
    sources = on_rank_0(comm, lambda: _found(options.source))
    weights, how = Path(options.weights), options.looking
    ready = shared_ready(weights, how, comm, options.device, options.head, options.data)
    owners = deal(sources, comm.size)
    mine = [(place, source) for place, source in enumerate(sources) if owners[place] == comm.rank]
    with ExitStack() as until_the_end:
        news = threading.Event()
        streams = together(comm, lambda: _opened(mine, news, options, until_the_end))
        folder = _result_folder(options, sources, comm)
        if comm.rank == 0:
            _say_who_looks(sources, owners, comm.size)
            _say_renamed(sources if folder else ())
        stop.agree_from_here()
        part = _Part(options, ready, sources, folder, stop)
        files = [(place, source) for place, source in mine if not isinstance(source, Live)]
        rows = _in_touch(comm, part, lambda: part.look_at(files, streams, news))
    parts = comm.allgather_object((part.count, rows))
    asked = any(comm.allgather_object(stop.asked))
    if options.save_json and folder is not None:
        json_file = folder / JSON_FILE
        on_rank_0(comm, lambda: write_json(json_file, "".join(lines for _, lines in parts)))
    total = sum((count for count, _ in parts), Count())
    if not (total.seen or asked):
        if comm.rank == 0 and folder is not None:
            discard_if_empty(folder)
        which = sources[0].name if len(sources) == 1 else f"all {len(sources)} sources"
        raise UserError("nothing could be read", where=which, fix="the lines above say why")
    if comm.rank == 0:
        log.info("%s%s", total, f"; results in {folder}" if folder else "")
    if total.stopped:
        words = f"before all was looked at; what was found is in {folder or 'the lines above'}"
        raise StoppedError(words, saved=True)
    return total


def _in_touch(comm: Communicator, part: _Part, work: Callable[[], str]) -> str:
    """What ``work`` gives, which may take this rank long, or for ever. *Collective.*

    Where a rank is asked to stop, or cannot write, all end within seconds.
    """
    if comm.size == 1:
        return work()  # in the main thread, where windows belong
    background = Background(lambda advance: part.guarded(work, advance))
    for told in meetings(comm, background, lambda: (part.asked, part.problem is not None)):
        if any(asked or failed for asked, failed in told):
            part.end(asked=any(asked for asked, _ in told))
    raise_together(comm, part.problem)
    return background.result()


def deal(sources: Sequence[Source], size: int) -> list[int]:
    """The rank of each source: pictures by turns, then by turns videos and streams."""
    order = sorted(range(len(sources)), key=lambda place: not isinstance(sources[place], Picture))
    ranks = {place: turn % size for turn, place in enumerate(order)}
    return [ranks[place] for place in range(len(sources))]


class _Part:
    """What one rank does."""

    def __init__(
        self,
        options: PredictOptions,
        ready: Ready,
        sources: Sequence[Source],
        folder: Path | None,
        stop: StopRequest,
    ) -> None:
        self.count = Count()
        self.problem: str | None = None  # why it could not go on
        self._options, self._ready, self._sources, self._stop = options, ready, sources, stop
        self._style = options.saving.style
        self._folder = folder
        self._enough = False  # said the user in the window, or another rank
        self._asked_elsewhere = False
        self._advance: Callable[[], None] = lambda: None

    @property
    def asked(self) -> bool:
        """Whether this rank or another was asked to stop."""
        return self._stop.asked or self._asked_elsewhere

    def end(self, *, asked: bool) -> None:
        """Look at nothing more."""
        self._enough, self._asked_elsewhere = True, asked or self._asked_elsewhere

    def guarded(self, work: Callable[[], str], advance: Callable[[int], None]) -> str:
        """Do the work; a mistake of the user's becomes ``problem``."""
        self._advance = lambda: advance(1)
        try:
            return work()
        except UserError as error:
            self.problem = str(error)
            return ""

    def look_at(self, files: Sequence[Placed], streams: Sequence[LiveStream], news: threading.Event) -> str:
        """Look at all, write and show what is found; the rows for COCO results."""
        if self._folder is None:
            for result in self._results(files, streams, news):
                self._take(result, None)
            return ""
        with closing(ResultFiles(self._folder, output_stems(self._sources), self._options.saving)) as written:
            for result in self._results(files, streams, news):
                self._take(result, written)
            return written.rows()

    def _results(
        self, files: Sequence[Placed], streams: Sequence[LiveStream], news: threading.Event
    ) -> Iterator[Result]:
        ready, options = self._ready, self._options
        frames = file_frames(files, every=options.vid_stride, broken=self._skip, stopped=self._cut_short)
        yield from detect(frames, ready.find, ready.sizes, ready.names, keep=True)
        if streams:
            frames = newest_frames(streams, news, self._over)
            yield from detect(frames, ready.find, replace(ready.sizes, batch=1), ready.names, keep=True)

    def _take(self, result: Result, written: ResultFiles | None) -> None:
        origin, count = result.origin, self.count
        count.pictures += not origin.number
        count.frames += bool(origin.number)
        count.objects += len(result)
        count.seen.add(origin.source)
        log.info("%s", self._line(result))
        drawn = drawn_on(result, self._style) if self._options.view_img or not self._options.nosave else None
        if written is not None:
            written.add(result, drawn)
        if self._options.view_img and drawn is not None:
            self._enough = show(origin.path, drawn, live=bool(origin.number)) or self._enough

    def _line(self, result: Result) -> str:
        """What people read of a result."""
        origin, names = result.origin, result.names
        kinds = Counter(names[number] for number in sorted(result.classes.tolist()))
        found = ", ".join(f"{many} {name}" for name, many in kinds.items()) or "nothing"
        height, width = result.orig_shape
        image = f", image {origin.number}" if origin.number else ""
        place = f"{origin.source + 1}/{len(self._sources)}"
        return f"{place} {origin.path}{image}: {width}x{height}, {found}, {sum(result.speed.values()):.1f} ms"

    def _skip(self, error: UserError) -> None:
        self.count.broken += 1
        log.warning("%s; it is skipped", str(error).partition(". ")[0])

    def _over(self) -> bool:
        """Asked before each image, and twice a second while no image comes."""
        self._advance()
        return self.asked or self._enough

    def _cut_short(self) -> bool:
        """Asked before each image of a file: whether it and the rest are left out."""
        self.count.stopped = self.count.stopped or self.asked
        return self._over()


def _found(given: Sequence[str]) -> list[Source]:
    sources = list(find_sources(given))
    if not sources:
        raise UserError("there is nothing to look at", fix="name a --source")
    return sources


def _opened(
    mine: Sequence[tuple[int, Source]], news: threading.Event, options: PredictOptions, until: ExitStack
) -> list[LiveStream]:
    """This rank's cameras and streams, which ``until`` closes."""
    streams = []
    for place, source in mine:
        if isinstance(source, Live):
            stream = LiveStream(source, place, news, every=options.vid_stride, patience=options.reconnect)
            until.callback(stream.close)
            streams.append(stream)
    return streams


def _result_folder(options: PredictOptions, sources: Sequence[Source], comm: Communicator) -> Path | None:
    """Made on rank 0, and on hosts with another disk; None where nothing is written. *Collective.*"""
    if not options.writes:
        return None
    folder = on_rank_0(comm, lambda: _new_folder(options, sources))
    together(comm, lambda: _own(folder))
    return folder


def _new_folder(options: PredictOptions, sources: Sequence[Source]) -> Path:
    """Never a folder with sources in it: pictures would be overwritten by their results."""
    wanted = (Path(options.project) / options.name).resolve()
    if options.exist_ok and any(
        Path(source.name).resolve().parent == wanted for source in sources if not isinstance(source, Live)
    ):
        raise UserError("sources are in the folder of the results", where=wanted, fix="name another --name")
    return new_run_folder(Path(options.project), options.name, options.exist_ok, inside="")


def _own(folder: Path) -> None:
    try:
        own_folder(folder)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror})", where=folder, fix="name another --project"
        ) from None


def _say_who_looks(sources: Sequence[Source], owners: Sequence[int], size: int) -> None:
    kinds = Counter(type(source) for source in sources)
    named = ((Picture, "picture"), (Video, "video"), (Live, "stream"))
    counted = [f"{kinds[kind]} {name}{'s' * (kinds[kind] > 1)}" for kind, name in named if kinds[kind]]
    idle = sorted(set(range(size)) - set(owners))
    who = f"rank {idle[0]} has" if len(idle) == 1 else f"ranks {idle[0]} to {idle[-1]} have" if idle else ""
    said = f"; {who} nothing to do: one picture, video or stream is one rank's" if idle else ""
    log.info("%s%s", ", ".join(counted), said)


def _say_renamed(sources: Sequence[Source]) -> None:
    """Which files go by another name because two sources have the same."""
    renamed = [
        f"{source.name} is {stem}"
        for source, stem in zip(sources, output_stems(sources), strict=True)
        if isinstance(source, (Picture, Video)) and Path(source.name).stem != stem
    ]
    if renamed:
        more = f" and {len(renamed) - MOST_NAMED} more" if len(renamed) > MOST_NAMED else ""
        log.warning("some names are there twice; in the results %s%s", ", ".join(renamed[:MOST_NAMED]), more)
