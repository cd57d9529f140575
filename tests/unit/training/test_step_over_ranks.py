"""Promise 1 in one process: the number of ranks changes a step by rounding only.

In float64, with YOLOv5's own rates, because there the growth of a rounding error has room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from horovod_yolo.core.errors import NonFiniteError
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.agreement import checksum
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.events import StepResult
from horovod_yolo.training.optimizers import apply_rates
from horovod_yolo.training.passes import Passes
from horovod_yolo.training.schedule import Schedule
from horovod_yolo.training.step import MOST_SKIPS_IN_A_ROW, Stepper
from tests.helpers.tiny import tiny_batch, tiny_criterion, tiny_detector
from tests.helpers.world import WorldCommunicator, run_world, world_outcomes

from .test_step import Faulty, faulty, frozen_norm, make_stepper

Windows = Sequence[Sequence[Batch]]
SIZES = (1, 2, 3, 4)


def without_objects(batch: Batch) -> Batch:
    """The same images, all of them empty."""
    targets = replace(
        batch.targets,
        image=batch.targets.image[:0],
        classes=batch.targets.classes[:0],
        boxes_xywhn=batch.targets.boxes_xywhn[:0],
    )
    return replace(batch, targets=targets)


def first_half_without_objects(batch: Batch) -> Batch:
    keep = batch.targets.image >= len(batch) // 2
    of = batch.targets
    return replace(
        batch,
        targets=replace(of, image=of.image[keep], classes=of.classes[keep], boxes_xywhn=of.boxes_xywhn[keep]),
    )


def windows() -> Windows:
    """Uneven and empty slices; some ranks, and then all, without an object; one step, two batches."""
    return [
        [tiny_batch(7, 0)],
        [tiny_batch(2, 1)],
        [tiny_batch(5, 2), tiny_batch(6, 3)],
        [first_half_without_objects(tiny_batch(6, 4))],
        [without_objects(tiny_batch(4, 5))],
        [tiny_batch(1, 6), without_objects(tiny_batch(3, 7)), tiny_batch(8, 8)],
    ]


def share(window: Sequence[Batch], comm: Communicator) -> list[Batch]:
    return [batch.split(comm.size)[comm.rank] for batch in window]


def trained(comm: Communicator, given: Windows, make: Callable[..., Stepper]) -> tuple[list[StepResult], Any]:
    """Train on a rank's slices, with rates as in YOLOv5's warm-up; the results and the weights."""
    model = tiny_detector()
    stepper = make(model, comm=comm)
    schedule = Schedule(
        epochs=3, batches_per_epoch=len(given), accumulate=1, lr0=0.01, lrf=0.1, cosine=False, momentum=0.937,
        warmup_epochs=3.0, warmup_momentum=0.8, warmup_bias_lr=0.1,
    )  # fmt: skip
    results = []
    for number, window in enumerate(given):
        apply_rates(stepper.optimizer, schedule.rates(0, number))
        results.append(stepper.step(iter(share(window, comm)), [1.0] * len(window)).result())
    return results, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def compare(size: int, given: Windows, make: Callable[..., Stepper]) -> None:
    """All ranks alike to the bit, and as one rank to rounding."""
    expected, expected_weights = trained(LocalCommunicator(), given, make)
    outcomes = run_world(size, lambda comm: trained(comm, given, make))
    for results, weights in outcomes:
        assert results == outcomes[0][0]
        assert checksum(weights) == checksum(outcomes[0][1])
    for result, alone in zip(outcomes[0][0], expected, strict=True):
        assert result.losses == pytest.approx(alone.losses, rel=1e-9)
        assert result.grad_norm == pytest.approx(alone.grad_norm, rel=1e-9)
        assert replace(result, losses={}, grad_norm=0) == replace(alone, losses={}, grad_norm=0)
    for name, weight in outcomes[0][1].items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "fused"), [("SGD", False), ("SGD", True), ("AdamW", False), ("AdamW", True), ("MuSGD", False)]
)
def test_any_number_of_ranks_makes_the_same_steps(size: int, name: str, fused: bool) -> None:
    def make(model: Any, comm: Communicator) -> Stepper:
        return make_stepper(model, name=name, sync_bn=True, fused=fused, comm=comm)

    compare(size, windows(), make)


@pytest.mark.parametrize("size", SIZES[1:])
def test_so_it_is_with_statistics_that_are_not_of_the_batch(size: int) -> None:
    compare(size, windows(), lambda model, **given: make_stepper(frozen_norm(model), **given))


@pytest.mark.parametrize("size", SIZES[1:])
def test_so_it_is_with_a_loss_scaler(size: int) -> None:
    compare(size, windows(), lambda model, **given: make_stepper(model, scaled=True, sync_bn=True, **given))


@pytest.mark.parametrize("size", [2, 4])
def test_musgd_rounds_to_bfloat16_and_stays_close(size: int) -> None:
    """Matrices are rounded on the way to being orthogonal; what that changes is small beside a step."""

    def one_step(comm: Communicator) -> dict[str, Tensor]:
        model = frozen_norm(tiny_detector(torch.float32))
        criterion = tiny_criterion(torch.float32)
        stepper = make_stepper(model, criterion=criterion, name="MuSGD", lr=0.01, comm=comm)
        stepper.step(iter(share([tiny_batch(7, 0)], comm)), [1.0]).result()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    alone, before = one_step(LocalCommunicator()), tiny_detector(torch.float32).state_dict()
    assert (alone["backbone.down.weight"] - before["backbone.down.weight"]).abs().max() > 1e-3
    for weights in run_world(size, one_step):
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[name], rtol=0, atol=2e-4, msg=name)


@pytest.mark.parametrize("micro_batches", [2, 5])
def test_so_it_is_where_slices_go_through_the_network_in_micro_batches(micro_batches: int) -> None:
    def make(model: Any, comm: Communicator) -> Stepper:
        stepper = make_stepper(frozen_norm(model), comm=comm)
        stepper.passes = Passes(8, micro_batches if comm.size > 1 else 1)
        return stepper

    compare(3, windows(), make)


def test_the_sums_see_more_than_rounding() -> None:
    """What `compare` must not overlook: statistics of each rank's own slice change the weights."""
    given = windows()[:3]
    _, alone = trained(LocalCommunicator(), given, make_stepper)
    _, together = run_world(2, lambda comm: trained(comm, given, make_stepper))[0]
    assert not torch.allclose(
        alone["backbone.stem.weight"], together["backbone.stem.weight"], rtol=1e-9, atol=0
    )


def test_images_and_substitutes_are_counted_over_all_ranks() -> None:
    def job(comm: Communicator) -> StepResult:
        batches = [replace(batch, replaced=comm.rank) for batch in share([tiny_batch(7, 0)] * 2, comm)]
        return make_stepper(tiny_detector(), comm=comm).step(iter(batches), [1.0, 1.0]).result()

    for result in run_world(4, job):
        assert (result.images, result.replaced) == (14, 12)


def test_a_stop_that_one_rank_was_asked_for_is_seen_by_all_in_the_same_step() -> None:
    def job(comm: Communicator) -> list[bool]:
        stop = StopRequest()
        stop.agree_from_here()
        stepper = make_stepper(tiny_detector(), comm=comm, stop=stop)
        seen = []
        for step in range(3):
            if (comm.rank, step) == (2, 1):
                stop.ask()
            seen.append(stepper.step(iter(share([tiny_batch(3, step)], comm)), [1.0]).result().stop)
        return seen

    assert run_world(3, job) == [[False, True, True]] * 3


def loss_of(comm: Communicator, bad_rank: int, factor: float) -> Faulty:
    loss = faulty()
    loss.factor = factor if comm.rank == bad_rank else 1.0
    return loss


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("factor", "fused"), [(float("inf"), False), (float("nan"), True)])
def test_one_ranks_gradient_that_is_not_finite_is_skipped_by_all(
    scaled: bool, factor: float, fused: bool
) -> None:
    def job(comm: Communicator) -> tuple[list[bool], float, str]:
        model = tiny_detector()
        loss = loss_of(comm, 1, 1.0)
        stepper = make_stepper(model, comm=comm, criterion=loss, scaled=scaled, fused=fused)
        skipped, sums = [], [checksum(dict(model.named_parameters()))]
        for good in (True, False, True):
            loss.factor = factor if comm.rank == 1 and not good else 1.0
            skipped.append(stepper.step(iter(share([tiny_batch(6, 0)], comm)), [1.0]).result().skipped)
            sums.append(checksum(dict(model.named_parameters())))
        assert sums[1] == sums[2], "a skipped step changes nothing"
        assert len(set(sums)) == 3
        return skipped, stepper.scaler.get_scale(), sums[-1]

    outcomes = run_world(3, job)
    assert outcomes == [([False, True, False], 512.0 if scaled else 1.0, outcomes[0][2])] * 3


@pytest.mark.parametrize(("largest", "overflows"), [(15_000.0, False), (20_000.0, True)])
def test_what_overflows_on_the_wire_is_skipped_by_all_and_lowers_the_scale(
    largest: float, overflows: bool
) -> None:
    """Each rank's gradient fits half precision, which ends at 65504; the sum over four of them may not."""
    alone = make_stepper(tiny_detector())
    alone._statistics.begin_batch()
    alone._forward_backward(tiny_batch(2, 0))
    of_all = 1024 * max(float(p.grad.abs().max()) for p in alone._trained if p.grad is not None)

    def job(comm: Communicator) -> tuple[bool, float]:
        loss = loss_of(comm, comm.rank, largest / of_all)
        stepper = make_stepper(tiny_detector(), comm=comm, criterion=loss, scaled=True, wire=torch.float16)
        result = stepper.step(iter([tiny_batch(2, 0)]), [1.0]).result()
        return result.skipped, stepper.scaler.get_scale()

    assert run_world(4, job) == [(overflows, 512.0 if overflows else 1024.0)] * 4


def test_a_run_of_skips_ends_all_ranks_with_the_same_words() -> None:
    def job(comm: Communicator) -> None:
        stepper = make_stepper(tiny_detector(), comm=comm, criterion=loss_of(comm, 0, float("nan")))
        for _ in range(MOST_SKIPS_IN_A_ROW + 1):
            stepper.step(iter(share([tiny_batch(2, 0)], comm)), [1.0]).result()

    outcomes = world_outcomes(2, job)
    assert [type(outcome) for outcome in outcomes] == [NonFiniteError] * 2
    assert str(outcomes[0]) == str(outcomes[1])


def test_a_step_asks_for_the_same_on_every_rank_and_in_a_known_order() -> None:
    def job(comm: WorldCommunicator) -> list[str]:
        model = tiny_detector()
        stepper = make_stepper(model, comm=comm, sync_bn=True)
        stepper.step(iter(share([tiny_batch(2, 0), tiny_batch(4, 1)], comm)), [1.0, 1.0]).result()
        return [call.name or call.kind for call in comm.calls]

    forward, backward = ["normalisers", "bn.backbone.norm"], "bn.backbone.norm.backward"
    last = [*forward, "running statistics", backward, "losses", "finish"]
    assert run_world(3, job) == [["exchange_gradients", *forward, backward, *last]] * 3
