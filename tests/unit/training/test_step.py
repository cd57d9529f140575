"""One optimizer step against the obvious loop, and what happens when gradients are not finite."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.checkpoint.state import copied
from horovod_yolo.core.errors import NonFiniteError
from horovod_yolo.core.precision import Precision
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights
from horovod_yolo.losses.assign import LevelMatch
from horovod_yolo.losses.criterion import Criterion, Loss, by_name, count
from horovod_yolo.models.detector import Detector
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.optimizers import make_optimizer
from horovod_yolo.training.passes import Passes
from horovod_yolo.training.scaling import scaled
from horovod_yolo.training.step import (
    LARGEST_GRADIENT_NORM,
    MOST_SKIPS_IN_A_ROW,
    Stepper,
)
from tests.helpers.runs import same_bits
from tests.helpers.tiny import STRIDES, tiny_batch, tiny_criterion, tiny_detector, tiny_head

CPU = torch.device("cpu")


def make_stepper(
    model: Detector,
    *,
    criterion: Criterion[Any, Any] | None = None,
    name: str = "SGD",
    scaled: bool = False,
    lr: float = 0.1,
    stop: StopRequest | None = None,
    comm: Communicator | None = None,
    sync_bn: bool = False,
    wire: torch.dtype | None = None,
    fused: bool | None = None,
) -> Stepper:
    comm = comm or LocalCommunicator()
    optimizer, exchange = comm.exchange_gradients(
        make_optimizer(name, model, lr=lr, momentum=0.9, decay=0.01, fused=fused),
        model.named_parameters(),
        wire=wire,
        group_mb=1.0,
    )
    return Stepper(
        model=model,
        criterion=criterion or tiny_criterion(),
        optimizer=optimizer,
        exchange=exchange,
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled),
        precision=Precision(device=CPU, dtype=next(model.parameters()).dtype),
        comm=comm,
        sync_bn=sync_bn,
        stop=stop or StopRequest(),
        passes=Passes(share=8),
    )


def size_of(batch: Batch) -> tuple[int, int]:
    height, width = batch.images.shape[2:]
    return height, width


def obvious_steps(model: Detector, windows: Sequence[Sequence[Batch]], lr: float) -> list[list[float]]:
    """The same training in plain PyTorch. The losses of each step, weighted by images."""
    norms = [p for n, p in model.named_parameters() if ".norm." in n and n.endswith("weight")]
    biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
    rest = [p for p in model.parameters() if not any(p is q for q in norms + biases)]
    groups = [{"params": biases}, {"params": norms}, {"params": rest, "weight_decay": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    criterion, losses = tiny_criterion(), []
    for window in windows:
        model.train()
        optimizer.zero_grad()
        total, terms, images = torch.zeros((), dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
        for batch in window:
            predictions = model(batch.images.double() / 255)
            matches = criterion.match(batch.targets, size_of(batch))
            totals = by_name(criterion, count(criterion, [matches], len(batch)))
            result = criterion(predictions, matches, totals)
            total = total + result.total
            terms += result.terms * len(batch)
            images += len(batch)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        optimizer.step()
        losses.append((terms / images).tolist())
    return losses


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("lr", [0.001, 0.3])
def test_steps_are_those_of_the_obvious_loop(scaled: bool, lr: float, fused: bool) -> None:
    windows = [[tiny_batch(3, 0)], [tiny_batch(2, 1), tiny_batch(4, 2)], [tiny_batch(1, 3), tiny_batch(1, 4)]]
    plain, ours = tiny_detector(), tiny_detector()
    expected = obvious_steps(plain, windows, lr)
    stepper = make_stepper(ours, scaled=scaled, lr=lr, fused=fused)
    for window, losses in zip(windows, expected, strict=True):
        result = stepper.step(iter(window), [1.0] * len(window)).result()
        assert [*result.losses.values()] == pytest.approx(losses, rel=1e-9)
        assert result.images == sum(map(len, window))
        assert not result.skipped
    for (name, mine), theirs in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_micro_batches_of_a_slice_add_up_to_its_gradient(count: int) -> None:
    """More of them than images too: some are empty. The norm is frozen, or it would see only one of them."""
    windows = [[tiny_batch(5, 0)], [tiny_batch(6, 1), tiny_batch(4, 2)]]
    whole, split = frozen_norm(tiny_detector()), frozen_norm(tiny_detector())
    steppers = make_stepper(whole), make_stepper(split)
    steppers[1].passes = Passes(6, count)
    for window in windows:
        first, second = (s.step(iter(window), [1.0] * len(window)).result() for s in steppers)
        assert second.losses == pytest.approx(first.losses, rel=1e-9)
        assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-9)
        assert second.images == first.images
    for (name, mine), theirs in zip(split.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def frozen_norm(model: Detector) -> Detector:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
            module.eval()
            module.training = False
    return model


def test_a_window_takes_only_its_batches() -> None:
    batches = iter([tiny_batch(1, seed) for seed in range(5)])
    make_stepper(tiny_detector()).step(batches, [1.0, 1.0]).result()
    assert len(list(batches)) == 3


def test_large_gradients_are_clipped_small_ones_are_not() -> None:
    model, loss = tiny_detector(), faulty()
    stepper = make_stepper(model, criterion=loss)
    norms = {}
    stepper.optimizer.register_step_pre_hook(lambda *_: norms.update(clipped=norm_of(model)))
    loss.factor = 100.0
    result = stepper.step(iter([tiny_batch(8, 0)]), [1.0]).result()
    assert result.grad_norm > LARGEST_GRADIENT_NORM
    assert norms["clipped"] == pytest.approx(LARGEST_GRADIENT_NORM, rel=1e-4)
    loss.factor = 1.0
    result = stepper.step(iter([tiny_batch(1, 0)]), [1.0]).result()
    assert result.grad_norm < LARGEST_GRADIENT_NORM
    assert norms["clipped"] == pytest.approx(result.grad_norm)


def norm_of(model: nn.Module) -> float:
    return float(
        torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    )


class Faulty(AnchorCriterion):
    """A loss whose gradient is multiplied by a factor, such as infinity."""

    factor = float("inf")

    def __call__(
        self, predictions: Sequence[Tensor], matches: list[LevelMatch], totals: Mapping[str, Tensor]
    ) -> Loss:
        result = super().__call__(predictions, matches, totals)
        return Loss(result.total * self.factor, result.terms)


def faulty() -> Faulty:
    return Faulty(LossWeights(), tiny_head().double())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("name", "fused"), [("SGD", False), ("SGD", True), ("AdamW", False), ("AdamW", True), ("MuSGD", True)]
)
@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e200])
def test_a_step_without_finite_gradients_changes_nothing(
    name: str, fused: bool, scaled: bool, factor: float
) -> None:
    """1e200: each gradient is finite, their norm is not. A fused optimizer leaves it to the device."""
    loss = faulty()
    loss.factor = 1.0
    model = tiny_detector()
    stepper = make_stepper(model, criterion=loss, name=name, scaled=scaled, fused=fused)
    stepper.step(
        iter([tiny_batch(2, 0)]), [1.0]
    ).result()  # so that there is momentum that could move the weights
    before, state = copy.deepcopy(dict(model.named_parameters())), copied(stepper.optimizer.state_dict())
    loss.factor = factor
    skipped = stepper.step(iter([tiny_batch(2, 1)]), [1.0])
    assert isinstance(skipped.made, Tensor) == (fused and name != "MuSGD")
    assert not skipped.made and skipped.result().skipped
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert same_bits(copied(stepper.optimizer.state_dict()), state)
    loss.factor = 1.0
    assert not stepper.step(iter([tiny_batch(2, 2)]), [1.0]).result().skipped
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert stepper.skipped_in_a_row == 0


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_first_step_that_is_none_leaves_no_trace_in_the_next(name: str) -> None:
    moved = []
    for first_factor in (float("nan"), None):
        loss, model = faulty(), tiny_detector()
        stepper = make_stepper(model, criterion=loss, name=name, fused=True)
        if first_factor is not None:
            loss.factor = first_factor
            assert stepper.step(iter([tiny_batch(2, 0)]), [1.0]).result().skipped
        loss.factor = 1.0
        stepper.step(iter([tiny_batch(2, 1)]), [1.0])
        moved.append(dict(model.named_parameters()))
    assert all(torch.equal(weight, moved[1][key]) for key, weight in moved[0].items())


def test_the_scaler_backs_off() -> None:
    stepper = make_stepper(tiny_detector(), criterion=faulty(), scaled=True)
    stepper.step(iter([tiny_batch(2, 0)]), [1.0]).result()
    assert stepper.scaler.get_scale() == 512.0


def test_a_run_of_skips_ends_training() -> None:
    stepper = make_stepper(tiny_detector(), criterion=faulty())
    for _ in range(MOST_SKIPS_IN_A_ROW):
        assert stepper.step(iter([tiny_batch(1, 0)]), [1.0]).result().skipped
    with pytest.raises(NonFiniteError, match="26 steps in a row; lower lr0"):
        stepper.step(iter([tiny_batch(1, 0)]), [1.0]).result()


def test_an_empty_share_gives_zero_gradients_and_leaves_the_statistics() -> None:
    model = tiny_detector()
    stepper = make_stepper(model, name="SGD")
    gradients: dict[str, Any] = {}
    stepper.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad for n, p in model.named_parameters()})
    )
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    stepper._forward_backward(tiny_batch(0, 0))
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_frozen_parameters_stay() -> None:
    model = tiny_detector()
    frozen = model.get_submodule("backbone.stem").requires_grad_(False)
    before = copy.deepcopy(dict(model.named_parameters()))
    make_stepper(model).step(iter([tiny_batch(4, 0)]), [1.0]).result()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == any(parameter is p for p in frozen.parameters()), name


@pytest.mark.parametrize(
    ("size", "factor", "stride", "expected"),
    [
        ((64, 96), 0.5, 32, (32, 64)),
        ((64, 96), 1.5, 32, (96, 128)),
        ((64, 64), 0.1, 32, (32, 32)),
        ((128, 192), 0.75, 64, (128, 128)),
        ((640, 640), 1.31, 64, (832, 832)),
        ((16, 16), 1.9, 16, (32, 32)),
    ],
)
def test_multi_scale_sizes_fit_the_network(
    size: tuple[int, int], factor: float, stride: int, expected: tuple[int, int]
) -> None:
    for images in (2, 0):
        batch = tiny_batch(images, 0, size)
        resized = scaled(batch, factor, stride)
        assert tuple(resized.images.shape) == (images, 3, *expected)
        assert resized.targets is batch.targets
    assert scaled(batch, 1.0, stride) is batch


def test_multi_scale_trains() -> None:
    result = (
        make_stepper(tiny_detector()).step(iter([tiny_batch(2, 0), tiny_batch(2, 1)]), [0.5, 1.4]).result()
    )
    assert result.images == 4
    assert max(STRIDES) == 16
