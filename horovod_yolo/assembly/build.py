"""The composition root: the one place that wires everything."""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from horovod_yolo.assembly.auto_optimizer import kept_choice, with_optimizer
from horovod_yolo.assembly.compiling import compile_network
from horovod_yolo.assembly.data import Data
from horovod_yolo.assembly.device import agreed_device, choose_precision, pinned
from horovod_yolo.assembly.fitting import fitted, note_search, passes_of, passes_of_evaluation
from horovod_yolo.assembly.given_weights import shared_weights
from horovod_yolo.assembly.image_cache import training_images
from horovod_yolo.assembly.input_size import require_cells, round_to_stride
from horovod_yolo.assembly.model import build_criterion, model_to_resume, new_model
from horovod_yolo.assembly.same_bits import compared, full_gpu
from horovod_yolo.assembly.slicing import balance_of, checks_of, slices_of, with_slices
from horovod_yolo.assembly.teaching import teach
from horovod_yolo.checkpoint.state import EarlyStopping, Progress
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.errors import UserError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Ints
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import AugmentParams, EvaluationTransform, TrainTransform
from horovod_yolo.data.cache import ImageReader
from horovod_yolo.data.image_weights import ImageWeights
from horovod_yolo.data.listing import require_mapped
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.own_pipeline import OwnPipeline
from horovod_yolo.data.sampler import StepSampler, rect_shapes
from horovod_yolo.data.spec import DataSpec
from horovod_yolo.distributed.agreement import together
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.distributed.exact_sums import ExactExchange
from horovod_yolo.evaluation.evaluator import Evaluator
from horovod_yolo.families.zoo import Recipe, recipe_of
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector
from horovod_yolo.models.suppression import Thresholds
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.events import Callback
from horovod_yolo.training.loop import Trainer
from horovod_yolo.training.optimizers import make_optimizer
from horovod_yolo.training.passes import Passes
from horovod_yolo.training.restore import set_state
from horovod_yolo.training.schedule import Schedule
from horovod_yolo.training.slice_digests import SliceDigests
from horovod_yolo.training.step import Stepper
from horovod_yolo.training.time_plan import TimePlan

log = logging.getLogger(__name__)
FP16_FIRST_SCALE = 2.0**16


def build_training_data(
    config: TrainConfig,
    annotations: Annotations,
    comm: Communicator,
    model: Detector,
) -> tuple[TrainTransform, StepSampler]:
    """How a training sample is made, and which ones are this rank's. *Collective.*"""
    hyp, recipe = config.hyp, recipe_of(model.name)
    params = AugmentParams(
        **{f.name: getattr(hyp, f.name) for f in fields(AugmentParams) if hasattr(hyp, f.name)},
        own=OwnPipeline(config.albumentations) if config.albumentations else None,
        **recipe.augmentation,
    )
    order: Ints | None = None
    shapes: Any = (config.imgsz, config.imgsz)
    if config.rect:
        order, shapes = rect_shapes(
            annotations.heights,
            annotations.widths,
            imgsz=config.imgsz,
            stride=max(model.strides),
            batch=config.batch_size,
            pad=0.0,
        )
        params = params.unmixed()
    sampler = StepSampler(
        len(annotations),
        config.batch_size,
        comm.rank,
        comm.size,
        seed=config.seed,
        shuffle=not config.rect,
        shape=shapes,
        order=order,
        slices=slices_of(config, comm),
        weights=weights_of_images(config, annotations),
        unmixed_from=max(config.epochs - config.close_mosaic, 0) if config.close_mosaic else None,
    )
    largest = np.atleast_2d(shapes).max(0).tolist()
    load = training_images(config, annotations, comm, (largest[0], largest[1]))
    return TrainTransform(annotations, load, params, config.seed, order), sampler


def weights_of_images(config: TrainConfig, annotations: Annotations) -> ImageWeights | None:
    """What ``--image-weights`` draws by; None without it."""
    if not config.image_weights:
        return None
    weights = ImageWeights(annotations)
    log.info("--image-weights: images are drawn with replacement, those of rare and badly found classes more")
    if weights.never_drawn:
        log.info("--image-weights: %d images without objects are never drawn", weights.never_drawn)
    return weights


def build_loader_alone(
    config: TrainConfig, annotations: Annotations, comm: Communicator, model: Detector
) -> Loader:
    """This rank's training batches, made in its own process."""
    transform, sampler = build_training_data(config, annotations, comm, model)
    return Loader(transform, sampler, workers=0, pin_memory=False)


def build_evaluation_loader(
    annotations: Annotations,
    comm: Communicator,
    *,
    imgsz: int,
    stride: int,
    batch: int,
    workers: int,
    pin_memory: bool,
    rect: bool = True,
    antialias: bool = True,
    shape: tuple[int, int] | None = None,
    slices: Slices | None = None,
) -> Loader:
    """This rank's validation batches: rectangular, as small as the global batch allows, or squares.

    With ``shape``, a (height, width), all are of that. ``slices`` are this rank's; by default each has one.
    """
    order: Ints | None = None
    shapes: Any = shape or (round_to_stride(imgsz, stride),) * 2
    if rect and shape is None:
        order, shapes = rect_shapes(
            annotations.heights, annotations.widths, imgsz=imgsz, stride=stride, batch=batch
        )
    sampler = StepSampler(
        len(annotations),
        batch,
        comm.rank,
        comm.size,
        seed=0,
        shuffle=False,
        shape=shapes,
        order=order,
        slices=slices,
    )
    load = ImageReader(annotations)
    return Loader(
        EvaluationTransform(annotations, load, longest_side=imgsz, antialias=antialias),
        sampler,
        workers=workers,
        pin_memory=pin_memory,
    )


def build_evaluator(
    config: TrainConfig,
    annotations: Annotations,
    criterion: Criterion[Any, Any],
    comm: Communicator,
    precision: Precision,
    stop: StopRequest,
    model: Detector,
    first_size: int,
) -> Evaluator:
    """What scores the model after each epoch of a run, which began on ``first_size`` ranks."""
    recipe = recipe_of(model.name)
    loader = build_evaluation_loader(
        annotations,
        comm,
        imgsz=config.imgsz,
        stride=max(model.strides),
        batch=config.evaluation_batch_size,
        workers=config.workers,
        pin_memory=pinned(precision.device),
        antialias=recipe.averages_areas,
        slices=slices_of(config, comm),
    )
    return Evaluator(
        annotations=annotations,
        loader=loader,
        criterion=criterion,
        comm=comm,
        precision=precision,
        stop=stop,
        thresholds=Thresholds(iou=recipe.iou_of_validation),
        fitness_weights=recipe.fitness,
        micro_batches=passes_of_evaluation(config, comm.size, first_size),
    )


def build_schedule(config: TrainConfig, recipe: Recipe, batches_per_epoch: int) -> Schedule:
    """Rates and accumulation of the whole run."""
    hyp = config.hyp
    share = config.batch_size * config.accumulate / hyp.nbs
    factor = {"none": 1.0, "linear": share, "sqrt": math.sqrt(share)}[config.scale_lr]
    if config.scale_lr != "none":
        log.info("--scale-lr %s: lr0 %g times %.3f", config.scale_lr, hyp.lr0, factor)
    return Schedule(
        epochs=config.epochs,
        batches_per_epoch=batches_per_epoch,
        accumulate=config.accumulate,
        lr0=hyp.lr0 * factor,
        lrf=hyp.lrf,
        cosine=config.cos_lr,
        momentum=hyp.momentum,
        warmup_epochs=hyp.warmup_epochs,
        warmup_momentum=hyp.warmup_momentum,
        warmup_bias_lr=hyp.warmup_bias_lr,
        least_warmup_batches=recipe.least_warmup_batches,
        warms_up_in_last_epoch=recipe.warms_up_in_last_epoch,
    )


def build_stepper(
    config: TrainConfig,
    model: Detector,
    criterion: Criterion[Any, Any],
    comm: Communicator,
    precision: Precision,
    stop: StopRequest,
    passes: Passes | None = None,
) -> Stepper:
    """Optimizer, gradient exchange and scaler around a model. *Collective.*

    ``passes`` is how a slice goes through it; None for at once.
    """
    decay = config.hyp.weight_decay * config.batch_size * config.accumulate / config.hyp.nbs
    plain = make_optimizer(
        config.optimizer, model, lr=config.hyp.lr0, momentum=config.hyp.momentum, decay=decay
    )
    scaler = torch.amp.GradScaler(
        precision.device.type, init_scale=FP16_FIRST_SCALE, enabled=precision.dtype == torch.float16
    )
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    record = None
    if config.record or config.check_every:  # before the exchange has its hooks
        record = SliceDigests(trained, recorded=config.record > 0)
    optimizer: Optimizer
    exchange: GradientExchange
    if config.sums == "exact" and config.slices > 1:  # what is one slice has no order
        optimizer = plain
        parameters = [parameter for _, parameter in trained]
        exchange = ExactExchange(parameters, comm, group_mb=config.fusion_mb, scale=scaler.get_scale)
    else:
        wire = wire_type(config.compression, scaler, precision.device, comm)
        optimizer, exchange = comm.exchange_gradients(plain, trained, wire=wire, group_mb=config.fusion_mb)
    return Stepper(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        exchange=exchange,
        scaler=scaler,
        precision=precision,
        comm=comm,
        sync_bn=config.sync_bn,
        stop=stop,
        passes=passes or Passes(math.ceil(config.batch_size / (config.slices or comm.size))),
        slices=slices_of(config, comm),
        record=record,
    )


def wire_type(
    wanted: str, scaler: torch.amp.GradScaler, device: torch.device, comm: Communicator
) -> torch.dtype | None:
    """In which type gradients travel; None for their own.

    ``auto`` is float16 between GPUs, and only where a loss scaler guards it: without one, what is under 6e-8
    is lost, and what is over 65504 overflows in every step. Between CPUs rounding costs more time than it
    saves. bfloat16 has float32's range and needs no scaler, and keeps 8 bits.

    Raises:
        UserError: what the ranks talk through does not send it.
    """
    if wanted == "fp16" and not scaler.is_enabled():
        log.warning(
            "--compression fp16 without --precision fp16: small gradients are lost, large ones overflow"
        )
    wire = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(wanted)
    if wire not in (None, *comm.wire_types):
        raise UserError(
            f"--compression {wanted}: Horovod does not send it", fix="use --engine torch, or fp16 or none"
        )
    guarded = wanted == "auto" and scaler.is_enabled() and device.type != "cpu"
    return torch.float16 if guarded else wire


def _weights(config: TrainConfig, spec: DataSpec, comm: Communicator) -> dict[str, Any] | None:
    """The checkpoint that a new run takes its weights from, if any. *Collective.*"""
    found = shared_weights(Path(config.weights), comm, config.cfg) if config.weights else None
    together(comm, lambda: require_mapped(spec, [str(name) for name in found["names"]] if found else ()))
    return found


def _about(
    config: TrainConfig,
    data: Data,
    device: torch.device,
    resumed: dict[str, Any] | None,
    weights: dict[str, Any] | None,
    comm: Communicator,
) -> dict[str, Any]:
    """What checkpoints say beside. *Collective.*

    They go on saying it of weights that others published, and of ranks that computed wrongly or unlike.
    """
    kept = {key: value for key, value in (resumed or weights or {}).items() if key in ("license", "faults")}
    positions = {"positions_in": data.train.digest, "validated_in": data.val.digest}  # of lost images
    return {**kept, **compared(config, device, resumed, comm), **positions}


def _model(
    config: TrainConfig,
    data: Data,
    weights: dict[str, Any] | None,
    resumed: dict[str, Any] | None,
    comm: Communicator,
) -> tuple[Detector, TrainConfig]:
    """The model to train, and the settings with a size of input that it takes. *Collective.*"""
    model = together(
        comm, lambda: model_to_resume(resumed, config) if resumed else new_model(config, data.train, weights)
    )
    stride = max(model.strides)
    config = replace(config, imgsz=round_to_stride(config.imgsz, stride))
    together(comm, lambda: require_cells(config, stride, resumed=resumed is not None))
    return model, config


def build_trainer(
    config: TrainConfig,
    data: Data,
    comm: Communicator,
    callbacks: list[Callback],
    resumed: dict[str, Any] | None,
    stop: StopRequest | None = None,
    first_size: int | None = None,
) -> Trainer:
    """Everything of a run, which began on ``first_size`` ranks, with equal state on all. *Collective.*"""
    stop, first_size = stop or StopRequest(), first_size or comm.size
    device = agreed_device(config.device, comm)
    precision = choose_precision(config.precision, device)
    weights = None if resumed else _weights(config, data.spec, comm)
    model, config = _model(config, data, weights, resumed, comm)
    model.to(device, precision.of_weights)
    config = with_slices(config, first_size, device, comm)
    ema, criterion = Ema(model), build_criterion(model, config)
    tuned = with_optimizer(config, len(data.train), model.num_classes, resumed)
    passes = passes_of(config, comm.size, first_size, resumed)
    stepper = build_stepper(tuned, model, criterion, comm, precision, stop, passes)
    teaching = teach(stepper, config, data.spec.names, resumed, comm)
    asked, config = config, fitted(config, stepper, comm, data.train)
    transform, sampler = build_training_data(config, data.train, comm, model)
    trainer = Trainer(
        config=config,
        names=data.spec.names,
        comm=comm,
        stepper=stepper,
        ema=ema,
        schedule=build_schedule(tuned, recipe_of(model.name), sampler.batches_per_epoch),
        transform=transform,
        sampler=sampler,
        loader=Loader(transform, sampler, workers=config.workers, pin_memory=pinned(device)),
        evaluator=build_evaluator(config, data.val, criterion, comm, precision, stop, model, first_size),
        callbacks=callbacks,
        progress=Progress(),
        early_stopping=EarlyStopping(),
        stop=stop,
        about=_about(config, data, device, resumed, weights, comm) | kept_choice(config, tuned) | teaching,
        why_unlike=full_gpu(device, comm),
    )
    trainer.plan = TimePlan.of(config.time, config.epochs)
    trainer.follow(balance_of(config, device, comm))
    trainer.checks = checks_of(config, trainer.loader, device, comm)
    if resumed is None:
        note_search(trainer, asked)
    set_state(trainer, resumed)
    compile_network(trainer)
    return trainer
