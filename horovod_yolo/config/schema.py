"""What a training run can be told: frozen, typed, checked when made.

Names and defaults are YOLOv5's, so that its users' commands work here. A family of models may have other
defaults, and has hyperparameters of its own: `assembly.settings` puts them in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from horovod_yolo.config.class_map import ClassMap
from horovod_yolo.config.hyperparameters import Hyp
from horovod_yolo.core.address import Address
from horovod_yolo.core.errors import UserError

Cache = Literal["none", "ram", "disk"]
OptimizerName = Literal["auto", "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSProp", "MuSGD"]
Compression = Literal["auto", "none", "fp16", "bf16"]
Precision = Literal["auto", "fp32", "tf32", "fp16", "bf16", "fp64"]  # fp64: to check, not to train
# One number: as many first rows of the model's table of layers; several: these rows; or names in the model.
Freeze = tuple[int, ...] | tuple[str, ...]
ScaleLr = Literal["none", "linear", "sqrt"]
MicroBatch = int | Literal["auto"]
Sums = Literal["auto", "exact", "float"]
Balance = Literal["off", "static", "auto"]
BestBy = Literal["fitness", "val_loss"]
LoggerName = Literal["tensorboard", "mlflow", "wandb", "none"]

AUTO: Literal["auto"] = "auto"
NO_LOGGER: LoggerName = "none"
STEPS_BETWEEN_ELASTIC_COMMITS = 10


def _require(ok: bool, name: str, value: object, rule: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value!r}", fix=f"it must be {rule}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Every field is a flag of ``train.py`` (dashes for underscores)."""

    data: str
    cfg: str = ""
    weights: str = ""
    hyp: Hyp = field(default_factory=Hyp)
    teacher: str = ""  # a file of weights whose answers are learnt too
    head: str = ""  # that detects, of a model with several; "": the model's usual one
    epochs: int = 300
    batch_size: int = 16
    micro_batch: MicroBatch = 0  # images of a slice in a pass; 0: all of it; auto: as many as fit
    slices: int = 0  # of each global batch; 0: as many as ranks when the run begins
    sums: Sums = "auto"  # of gradients over the slices
    balance: Balance = "off"  # how slices are shared among ranks: alike, or as fast as they are
    threads: int = 0  # that a rank computes on; 0: the smallest share of cores when the run begins
    imgsz: int = 640
    rect: bool = False
    image_weights: bool = False
    albumentations: str = ""  # a pipeline's file; in a run what it says, as JSON
    single_cls: bool = False
    fraction: float = 1.0  # of the training images
    best_by: BestBy = "fitness"
    time: float = 0.0  # hours that the epochs are to fit into; 0: as many as epochs says
    cache: Cache = "none"
    device: str = ""
    multi_scale: bool = False
    optimizer: OptimizerName = "SGD"
    sync_bn: bool = False
    workers: int = 4
    project: str = "runs/train"
    name: str = "exp"
    exist_ok: bool = False
    cos_lr: bool = False
    label_smoothing: float = 0.0
    patience: int = 100
    close_mosaic: int = 0
    freeze: Freeze = (0,)
    save_period: int = -1
    seed: int = 0
    noautoanchor: bool = False
    noval: bool = False
    noplots: bool = False
    compression: Compression = "auto"
    fusion_mb: float = 25.0
    commit_every: int = 0
    elastic: bool = False
    elastic_wait: float = 300.0
    precision: Precision = "auto"
    compile: bool = False  # the network's passes in training, by PyTorch's compiler
    deterministic: bool = False
    portable_bits: bool = False
    scale_lr: ScaleLr = "none"
    max_steps: int = 0
    class_map: ClassMap = ()
    skip_bad_classes: bool = False
    data_changed: bool = False
    check_every: int = 0  # steps between two in which a slice is done twice; 0: never
    record: int = 0  # steps whose slices' gradients have digests in the run's folder
    cache_dir: str = ""
    stage: str = ""
    log_dir: str = ""
    dashboard: str = ""  # port, or address and port, of a page that shows the run while it goes
    log_to: tuple[LoggerName, ...] = ()  # (): TensorBoard where it is installed

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("imgsz", 32),
            ("workers", 0),
            ("patience", 0),
            ("close_mosaic", 0),
            ("slices", 0),
            ("threads", 0),
            ("commit_every", 0),
            ("max_steps", 0),
            ("seed", 0),
            ("record", 0),
            ("check_every", 0),
        ):
            value = getattr(self, name)
            _require(value >= least, _flag(name), value, f"{least} or more")
        _require(
            0 <= self.label_smoothing < 1, "--label-smoothing", self.label_smoothing, "from 0 to under 1"
        )
        _require(self.seed < 1 << 64, "--seed", self.seed, "under 2 to the power of 64, as torch needs it")
        sound = self.micro_batch == AUTO or (isinstance(self.micro_batch, int) and self.micro_batch >= 0)
        _require(sound, "--micro-batch", self.micro_batch, "auto, or 0 or more")
        _require(0 < self.fraction <= 1, "--fraction", self.fraction, "above 0, up to 1")
        _require(0 <= self.time < math.inf, "--time", self.time, "hours, above 0; or 0 for no limit")
        self._check_freeze()
        _require(self.elastic_wait > 0, "--elastic-wait", self.elastic_wait, "seconds, above 0")
        _require(0 <= self.fusion_mb <= 128, "--fusion-mb", self.fusion_mb, "from 0 to 128")
        self._check_choices()
        self._check_slices()
        self._check_compile()
        if self.dashboard:
            Address.parse(self.dashboard, "--dashboard")
        if self.image_weights and self.rect:
            fix = "leave one of them out: --rect takes the images in the order of their shapes"
            raise UserError("--image-weights and --rect exclude each other", fix=fix)
        _require(
            not (self.deterministic and self.precision == "tf32"),
            "--precision",
            self.precision,
            "another one with --deterministic, which leaves out TF32",
        )

    def _check_slices(self) -> None:
        _require(
            self.slices <= self.batch_size, "--slices", self.slices, f"up to --batch-size, {self.batch_size}"
        )
        apart = {"--slices": self.slices, "--sums exact": self.sums == "exact"}
        apart[f"--balance {self.balance}"] = self.balance != "off"
        if self.sync_bn and (flag := next((flag for flag, given in apart.items() if given), None)):
            fix = "leave one of them out: with --sync-bn each rank's part of a batch depends on the others'"
            raise UserError(f"{flag} and --sync-bn exclude each other", fix=fix)
        if self.sums == "exact" and self.compression not in ("auto", "none"):
            raise UserError(
                f"--sums exact and --compression {self.compression} exclude each other",
                fix="leave one of them out: what travels as integers is not compressed",
            )

    def _check_compile(self) -> None:
        for flag, given, why in (
            ("--sync-bn", self.sync_bn, "what is between two batch norms that wait for others is one layer"),
            ("--portable-bits", self.portable_bits, "code is made for the processor that is there"),
        ):
            if self.compile and given:
                fix = f"leave one of them out: {why}"
                raise UserError(f"--compile and {flag} exclude each other", fix=fix)

    def _check_freeze(self) -> None:
        numbers = [one for one in self.freeze if isinstance(one, int)]
        alike = len(numbers) in (0, len(self.freeze))
        sound = all(one >= 0 if isinstance(one, int) else one.strip() for one in self.freeze)
        rule = "a number of layers, a list of their numbers from 0, or names such as model.0, not both"
        _require(bool(self.freeze) and alike and sound, "--freeze", self.freeze, rule)

    def _check_choices(self) -> None:
        for name, choices in (
            ("cache", Cache),
            ("optimizer", OptimizerName),
            ("compression", Compression),
            ("precision", Precision),
            ("scale_lr", ScaleLr),
            ("sums", Sums),
            ("balance", Balance),
            ("best_by", BestBy),
        ):
            allowed = get_args(choices)
            _require(
                getattr(self, name) in allowed,
                _flag(name),
                getattr(self, name),
                "one of " + ", ".join(allowed),
            )
        known = set(self.log_to) <= {*get_args(LoggerName)}
        alone = NO_LOGGER not in self.log_to or len(self.log_to) == 1
        rule = f"some of {', '.join(get_args(LoggerName)[:-1])}, or {NO_LOGGER} alone"
        _require(known and alone, "--log-to", " ".join(self.log_to), rule)

    @property
    def accumulate(self) -> int:
        """Batches whose gradients are summed before a step, after the warm-up."""
        return max(round(self.hyp.nbs / self.batch_size), 1)

    @property
    def evaluation_batch_size(self) -> int:
        """Images of a batch of validation, over all ranks: twice as many, for nothing is kept to go back."""
        return 2 * self.batch_size

    @property
    def steps_between_commits(self) -> int:
        """Steps after which the state is kept, beside the end of each epoch; 0 for there only."""
        return self.commit_every or (STEPS_BETWEEN_ELASTIC_COMMITS if self.elastic else 0)

    @property
    def run_parent(self) -> Path:
        """The folder that holds the run folders."""
        return Path(self.project)

    def check_world(self, size: int) -> None:
        """Raise where the run cannot be shared by ``size`` ranks."""
        if self.batch_size < size and not self.elastic:
            raise UserError(
                f"--batch-size {self.batch_size}, the total over all ranks, is smaller than the {size} ranks",
                fix=f"use --batch-size {size} or more, or fewer ranks",
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain builtins for YAML and checkpoints."""
    values: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    values["hyp"] = {f.name: getattr(config.hyp, f.name) for f in fields(config.hyp)}
    values["freeze"] = list(config.freeze)
    values["log_to"] = list(config.log_to)
    values["class_map"] = dict(config.class_map)
    return values


def from_dict(values: dict[str, Any], hyp: type[Hyp] = Hyp) -> TrainConfig:
    """The inverse of `to_dict`; ``hyp`` is the class of the hyperparameters.

    Raises:
        UserError: there are hyperparameters that this class has not.
    """
    values = dict(values)
    if unknown := sorted(values["hyp"].keys() - {f.name for f in fields(hyp)}):
        fix = "an older version began this run; go on with that one"
        raise UserError(f"the run's hyperparameters {', '.join(unknown)} are not known", fix=fix)
    values["hyp"] = hyp(**values["hyp"])
    values["freeze"] = tuple(values["freeze"])
    values["log_to"] = tuple(values.get("log_to", ()))
    values["class_map"] = tuple(values.get("class_map", {}).items())
    return TrainConfig(**values)
