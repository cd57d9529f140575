"""The same training without the abstractions: one rank, plain PyTorch, one screen.

Model, loss and augmentations are the package's; all that lies between them is written out. It is here to be
read beside training/loop.py and training/step.py, and tests/unit/training/test_plain_training.py holds both
to the same weights, bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.core.types import Image, SampleKey
from horovod_yolo.data.annotations import Annotations
from horovod_yolo.data.augment import AugmentParams, augment
from horovod_yolo.data.collate import collate
from horovod_yolo.data.sampler import Stream, keyed_generator
from horovod_yolo.families.anchor_based.family import anchor_head, own_hyp
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.detector import Detector

AUGMENTATIONS = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr",
    "mosaic", "mixup",
)  # fmt: skip


def train_plainly(
    annotations: Annotations, load: Callable[[int], Image], config: TrainConfig, dtype: torch.dtype
) -> tuple[Detector, Detector]:
    """Train from random weights with SGD; the last weights and their moving average."""
    hyp, imgsz, size, seed = config.hyp, config.imgsz, config.batch_size, config.seed
    torch.manual_seed(seed)
    model = build_model(config.cfg, len(annotations.names)).to(dtype).train()
    for layer in _frozen_layers(model, config):  # without gradients; eval: batch norm stays as it is, too
        layer.requires_grad_(False).eval()
    average, updates = copy.deepcopy(model).eval().requires_grad_(False), 0
    loss, optimizer = _loss(model, config), _optimizer(model, config)
    params = AugmentParams(**{name: getattr(hyp, name) for name in AUGMENTATIONS})
    batches = math.ceil(len(annotations) / size)
    for epoch in range(config.epochs):
        order = np.arange(len(annotations))
        keyed_generator(seed, Stream.ORDER, epoch).shuffle(order)
        first = 0
        while first < batches:  # a step takes some batches, and never any of the next epoch
            window = range(first, min(first + _accumulate(epoch * batches + first, batches, config), batches))
            first = window.stop
            _set_rates(optimizer, epoch, epoch * batches + window[-1], batches, config)
            for k in window:
                keys = [SampleKey(epoch, i, imgsz, imgsz) for i in order[k * size : (k + 1) * size].tolist()]
                batch = collate([augment(key, annotations, load, params, seed) for key in keys], imgsz, imgsz)
                images = batch.images.to(dtype).contiguous(memory_format=torch.channels_last) / 255
                matches = loss.match(batch.targets, (imgsz, imgsz))
                totals = by_name(loss, count(loss, [matches], len(keys)))  # of all ranks, if there were more
                loss(model(images), matches, totals).total.backward()  # gradients of a window add up
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            kept = 0.9999 * (1 - math.exp(-updates / 2000))
            with torch.no_grad():
                for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    old.lerp_(new, 1 - kept) if new.is_floating_point() else old.copy_(new)
    return model, average


def _frozen_layers(model: Detector, config: TrainConfig) -> list[nn.Module]:
    """The first rows of the table of layers."""
    parts, rows = (model.backbone, model.neck), range(int(config.freeze[0]))
    return [p.get_submodule(name) for p in parts for name, row in p.published.items() if row in rows]


def _loss(model: Detector, config: TrainConfig) -> AnchorCriterion:
    """The gains of a hyp.yaml are for three levels, 80 classes and 640 pixels."""
    hyp, share = own_hyp(config), 3 / len(model.strides)
    weights = LossWeights(
        box=hyp.box * share,
        obj=hyp.obj * share * (config.imgsz / 640) ** 2,
        cls=hyp.cls * share * model.num_classes / 80,
    )
    return AnchorCriterion(weights, anchor_head(model))


def _optimizer(model: Detector, config: TrainConfig) -> torch.optim.SGD:
    """Weights decay, biases and batch norm do not; the decay is that of a nominal batch of 64 images."""
    norms = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    others = [p for p in model.parameters() if not any(p is q for q in norms + biases)]
    decay = config.hyp.weight_decay * config.batch_size * _batches_of_a_step(config) / config.hyp.nbs
    groups = [{"params": biases}, {"params": norms}, {"params": others, "weight_decay": decay}]
    return torch.optim.SGD(groups, lr=config.hyp.lr0, momentum=config.hyp.momentum, nesterov=True)


def _batches_of_a_step(config: TrainConfig) -> int:
    return max(round(config.hyp.nbs / config.batch_size), 1)


def _warmup(batches: int, config: TrainConfig) -> int:
    return max(round(config.hyp.warmup_epochs * batches), 100) if config.hyp.warmup_epochs else 0


def _accumulate(number: int, batches: int, config: TrainConfig) -> int:
    """How many batches the step takes that begins with batch ``number`` of the run: at first one."""
    warmup = _warmup(batches, config)
    if number >= warmup:
        return _batches_of_a_step(config)
    return max(1, round(np.interp(number, [0, warmup], [1, _batches_of_a_step(config)])))


def _set_rates(
    optimizer: torch.optim.SGD, epoch: int, number: int, batches: int, config: TrainConfig
) -> None:
    """For a step that ends with batch ``number`` of the run. Biases begin at a rate of their own."""
    hyp, done, warmup = config.hyp, epoch / config.epochs, _warmup(batches, config)
    factor = (1 - done) * (1 - hyp.lrf) + hyp.lrf
    if config.cos_lr:
        factor = (1 - math.cos(done * math.pi)) / 2 * (hyp.lrf - 1) + 1
    bias_lr = lr = hyp.lr0 * factor
    momentum = hyp.momentum
    if warmup and number <= warmup:
        warm = number / warmup
        bias_lr, lr = hyp.warmup_bias_lr + (lr - hyp.warmup_bias_lr) * warm, lr * warm
        momentum = hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * warm
    for group, rate in zip(optimizer.param_groups, (bias_lr, lr, lr), strict=True):
        group["lr"], group["momentum"] = rate, momentum
