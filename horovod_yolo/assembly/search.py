"""A search to take part in: its settings, in ``tune.yaml``, and its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from horovod_yolo.assembly.anew import EarlierRanks
from horovod_yolo.assembly.given_weights import with_model
from horovod_yolo.assembly.named_data import data_here
from horovod_yolo.assembly.owner import OWNERS
from horovod_yolo.assembly.resuming import PLACE, absolute_paths
from horovod_yolo.assembly.run_folder import new_run_folder
from horovod_yolo.assembly.settings import settings_of
from horovod_yolo.checkpoint.store import write
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.agreement import on_rank_0, together
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.io.plain_yaml import read_mapping
from horovod_yolo.tune.space import Range, default_space, load_space, space_of
from horovod_yolo.tune.study import JOURNAL, Study

PROJECT, TRIALS = "runs/tune", 30
SETTINGS, SETTINGS_BYTES, FORMAT = "tune.yaml", 1 << 18, 1
NEWEST = "newest"
_OF_THE_FOLDER = ("project", "name", "exist_ok")
_FILES = ("albumentations",)


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What ``horovod-yolo tune`` is told; ``flags`` are those of training, as they were given.

    Attributes:
        trials: how many there shall be; None: 30, or as many as the search has.
        space: file of the ranges, or what it would say; empty for the usual ones.
        prune: whether trials that fall behind are ended early.
        resume: folder of a search to go on with, or to join; ``newest``; empty for a new one.
        ranks_per_trial: of those that mpirun has started; 0: all, or those that any launcher has.
    """

    flags: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    space: str | Path | Mapping[str, Any] = ""
    prune: bool = True
    resume: str = ""
    ranks_per_trial: int = 0

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UserError(f"--trials is {self.trials}", fix="it must be 1 or more")
        if self.flags.get("elastic"):
            fix = "leave it out: lost trials are repeated anyway, by horovod-yolo tune --resume"
            raise UserError("--elastic is not for a search", fix=fix)
        if self.ranks_per_trial and self.flags.get("dashboard"):
            fix = "leave one of them out: a page shows one run at a time"
            raise UserError("--dashboard and --ranks-per-trial exclude each other", fix=fix)


@dataclass(frozen=True)
class Search:
    """A search, new or not.

    Attributes:
        folder: of the search.
        flags: of each trial's training, without what is searched; ``hyp`` has all hyperparameters.
        space: what is searched.
        trials: that were wanted in the beginning.
        prune: whether trials that fall behind are ended early.
    """

    folder: Path
    flags: dict[str, Any]
    space: dict[str, Range]
    trials: int
    prune: bool

    @property
    def config(self) -> TrainConfig:
        """The settings of training without what is searched."""
        return settings_of(self.flags)

    def study(self) -> Study:
        """Its journal. For rank 0."""
        config = self.config
        warmup = self._epochs_before_pruning(config) if self.prune else None
        return Study(self.folder, self.space, seed=config.seed, wanted=self.trials, warmup_epochs=warmup)

    def _epochs_before_pruning(self, config: TrainConfig) -> int:
        """Epochs whose scores say too little about the last one to end a trial by them.

        While the learning rate warms up, the trial that warms up fastest is ahead, so the longest warm-up of
        the search must be over. A trial with a high learning rate then stays behind until the rate has
        fallen, so half of the schedule must be over, too. That also covers the warm-ups of small sets of
        images, which last 100 batches at least. Successive halving would decide at fewer epochs, but by what
        it noted when it decided, which a trial that is repeated after a loss does not have; the median needs
        no notes.
        """
        warm_up = self.space.get("warmup_epochs")
        longest = max(warm_up.choices or (warm_up.high,)) if warm_up else config.hyp.warmup_epochs
        return max(math.ceil(config.epochs / 2), math.ceil(longest))


def open_search(options: TuneOptions, comm: Communicator) -> Search:
    """The search that is asked for, in a folder that rank 0 makes, or that is there. *Collective.*

    Raises:
        UserError: a mistake in the flags or the ranges, or no such search.
    """
    earlier = EarlierRanks(comm)
    search = _of(options, earlier.folder, comm)
    earlier.tell(search.folder)
    return search


def _of(options: TuneOptions, earlier: Path | None, comm: Communicator) -> Search:
    if earlier is not None:
        return on_rank_0(comm, lambda: _read(earlier))
    if options.resume:
        return on_rank_0(comm, lambda: _gone_on(options))
    given = dict(options.flags)
    if given.get("data"):
        given["data"] = data_here(str(given["data"]), comm)
    given = with_model(given, comm)
    config = together(comm, lambda: settings_of(given))
    flags = {**absolute_paths(given), "hyp": asdict(config.hyp)}
    flags |= {name: str(Path(flags[name]).absolute()) for name in _FILES if flags.get(name)}
    together(comm, lambda: config.check_world(comm.size))
    return on_rank_0(comm, lambda: _begun(options, flags))


def _begun(options: TuneOptions, flags: dict[str, Any]) -> Search:
    config = settings_of(flags)
    auto = config.optimizer == "auto"
    if isinstance(options.space, Mapping):
        space = space_of(options.space, "space", config.hyp, auto_optimizer=auto)
    elif options.space:
        space = load_space(Path(options.space), config.hyp, auto_optimizer=auto)
    else:
        space = default_space(config.hyp, auto_optimizer=auto)
    project, name = Path(flags.get("project", PROJECT)), config.name
    if config.exist_ok and (project / name / JOURNAL).exists():
        raise UserError("a search is there already", where=project / name, fix="go on with it: --resume")
    Study(project, space, seed=0, wanted=1, warmup_epochs=None)  # before a folder is made: is Optuna there?
    folder = new_run_folder(project, name, config.exist_ok, OWNERS)
    trials = options.trials or TRIALS
    own = {name: value for name, value in flags.items() if name not in _OF_THE_FOLDER}
    search = Search(folder, own, space, trials, options.prune)
    write(folder / SETTINGS, yaml.safe_dump(_as_plain(search), sort_keys=False).encode())
    search.study().begin(flags["hyp"], trials)
    return search


def _gone_on(options: TuneOptions) -> Search:
    if options.space or not options.prune:
        flag = "--space" if options.space else "--no-prune"
        raise UserError(f"{flag} is of a new search", where="--resume", fix="leave it out")
    project = Path(options.flags.get("project", PROJECT))
    folder = _newest(project) if options.resume == NEWEST else Path(options.resume)
    search = _read(folder)
    flags = dict(search.flags)
    for name, value in absolute_paths(dict(options.flags)).items():
        if name in PLACE:
            flags[name] = value
        elif name not in _OF_THE_FOLDER and _plain(value) != flags.get(name):
            raise UserError(
                f"--{name.replace('_', '-')} differs from the search's {flags.get(name)!r:.60}",
                where="--resume",
                fix="leave it out, or begin a new search",
            )
    search = Search(folder, flags, search.space, search.trials, search.prune)
    if options.trials is not None:
        search.study().want(options.trials)
    return search


def _newest(project: Path) -> Path:
    found = list(project.glob(f"*/{JOURNAL}"))
    if not found:
        fix = "name one: horovod-yolo tune --resume runs/tune/exp"
        raise UserError("no search to go on with", where=project, fix=fix)
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def _read(folder: Path) -> Search:
    path = folder / SETTINGS
    if not path.exists() or not (folder / JOURNAL).exists():
        fix = "name the folder of one, such as runs/tune/exp"
        raise UserError("no search is in this folder", where=folder, fix=fix)
    said = read_mapping(path, most_bytes=SETTINGS_BYTES, what="the settings of a search")
    if said.get("format_version") != FORMAT:
        raise UserError(f"format {said.get('format_version')!r:.20}", where=path, fix="use a newer version")
    try:
        flags = {**said["flags"]}
        if "class_map" in flags:
            flags["class_map"] = tuple((str(old), str(new)) for old, new in flags["class_map"])
        space = {
            name: Range(**{**values, "choices": tuple(values["choices"])})
            for name, values in said["space"].items()
        }
        return Search(folder, flags, space, int(said["trials"]), bool(said["prune"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"damaged ({error!r:.80})", where=path, fix="begin a new search") from None


def _as_plain(search: Search) -> dict[str, Any]:
    space = {name: {**asdict(found), "choices": list(found.choices)} for name, found in search.space.items()}
    flags = {name: _plain(value) for name, value in search.flags.items()}
    return {
        "format_version": FORMAT,
        "flags": flags,
        "space": space,
        "trials": search.trials,
        "prune": search.prune,
    }


def _plain(value: Any) -> Any:
    """A flag as YAML has it."""
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
