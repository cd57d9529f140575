"""Batch norm against float64: one layer over many pixels, and whole networks in every way of running them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.core.types import Targets
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.sync_batchnorm import SyncBatchNorm2d, synchronise_batch_norm
from horovod_yolo.families.anchor_based.family import anchor_head
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.detector import Detector

FORMATS = {"channels last": torch.channels_last, "NCHW": torch.contiguous_format}
KINDS: dict[str, Callable[[BatchNorm2d], nn.BatchNorm2d]] = {
    "plain": lambda norm: norm,
    "synchronised": lambda norm: SyncBatchNorm2d(norm, LocalCommunicator(), "x"),
}


def random_norm(channels: int) -> BatchNorm2d:
    norm = BatchNorm2d(channels, eps=1e-3, momentum=0.03)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(channels))
    return norm


def trained_on(norm: nn.BatchNorm2d, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Output, gradients and running statistics."""
    own = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm.train()(own)
    norm.zero_grad()
    (y * weights).sum().backward()
    results = [y, own.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
    return [result.detach() for result in results if result is not None]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13), (torch.bfloat16, 1e-2)]
)
def test_a_layer_over_many_pixels(layout: str, kind: str, dtype: torch.dtype, bound: float) -> None:
    """A quarter of a million values a channel: where these are added one by one, two digits are lost."""
    rng = torch.Generator().manual_seed(1)
    x = (torch.randn((4, 4, 256, 256), generator=rng) * 2 + 5).to(dtype)
    weights = (torch.randn(x.shape, generator=rng) + x - 4).to(dtype)  # sums that do not cancel out
    norm = random_norm(4)
    expected = trained_on(as_torchs(norm), x.double(), weights.double())
    ours = KINDS[kind](copy.deepcopy(norm))
    ours = ours.double() if dtype == torch.float64 else ours
    found = trained_on(ours, x.contiguous(memory_format=FORMATS[layout]), weights)
    assert found[0].dtype == dtype and found[0].is_contiguous(memory_format=FORMATS[layout])
    for mine, exact in zip(found, expected, strict=True):
        assert relative_error(mine, exact) < bound


def as_torchs(norm: BatchNorm2d) -> nn.BatchNorm2d:
    torchs = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    torchs.load_state_dict(norm.state_dict())
    return torchs.double()


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def test_evaluation_is_torchs() -> None:
    norm = random_norm(4)
    trained_on(norm, torch.randn(2, 4, 8, 8), torch.ones(2, 4, 8, 8))
    x = torch.randn(2, 4, 8, 8)
    expected = nn.functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3
    )
    assert torch.equal(norm.eval()(x), expected)


def test_the_running_statistics_count_their_batches() -> None:
    norm = random_norm(4)
    for _ in range(3):
        norm.train()(torch.randn(2, 4, 8, 8))
    assert norm.num_batches_tracked == 3


def test_a_single_value_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        random_norm(4).train()(torch.randn(1, 4, 1, 1))


SIDE = 384


@cache
def scene() -> tuple[Tensor, Targets]:
    """A smooth picture with a little noise, and eight boxes."""
    rng = torch.Generator().manual_seed(2)
    smooth = nn.functional.interpolate(torch.rand(1, 3, 24, 24, generator=rng), (SIDE, SIDE), mode="bilinear")
    boxes = torch.rand(8, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.1
    targets = Targets(torch.zeros(8, dtype=torch.int64), torch.randint(5, (8,), generator=rng), boxes)
    return (smooth + 0.05 * torch.rand(1, 3, SIDE, SIDE, generator=rng)).clamp(0, 1), targets


def gradient(model: Detector, layout: torch.memory_format, side: int = SIDE) -> Tensor:
    """Of all parameters, as one vector."""
    images, targets = scene()
    images = images[..., :side, :side].to(next(model.parameters())).contiguous(memory_format=layout)
    loss = AnchorCriterion(LossWeights(), anchor_head(model))
    matches = loss.match(targets, (side, side))
    totals = by_name(loss, count(loss, [matches], len(images)))
    model.zero_grad()
    loss(model.train()(images), matches, totals).total.backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


@cache
def network(steps: int) -> tuple[Detector, Tensor]:
    """yolov5n after some steps of training, and its gradient in float64."""
    torch.manual_seed(0)
    model = build_model("yolov5n", 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        gradient(model, torch.contiguous_format, 128)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model, gradient(copy.deepcopy(model).double(), torch.contiguous_format)


@pytest.mark.parametrize("steps", [0, 5], ids=["first step", "trained weights"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_network(kind: str, layout: str, steps: int) -> None:
    model, exact = network(steps)
    model = copy.deepcopy(model)
    if kind == "synchronised":
        synchronise_batch_norm(model, LocalCommunicator())
    assert relative_error(gradient(model, FORMATS[layout]), exact) < 8e-5
