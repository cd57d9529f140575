"""A rank runs out of memory in a step: all do the step again in smaller passes, as if nothing had been."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.assembly.fitting import largest_pass
from horovod_yolo.checkpoint.state import copied
from horovod_yolo.core.errors import MemoryShortError, UserError
from horovod_yolo.core.memory import shortage
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.models.detector import Detector
from horovod_yolo.training.events import StepResult
from horovod_yolo.training.passes import Passes
from horovod_yolo.training.step import Stepper
from tests.helpers.runs import same_bits
from tests.helpers.tiny import CLASSES, tiny_batch, tiny_criterion, tiny_detector
from tests.helpers.tiny_free import add_tiny_free, criterion_of
from tests.helpers.world import run_world, world_outcomes

from .test_step import make_stepper

HOST = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
PLACES = ("before the norm", "after it", "backward before it", "backward after it")
SHARE = 8  # images of a rank, at most
Made = tuple[Detector, Any]


@dataclass
class Trap:
    """Memory that runs out once, when a batch norm is reached for the n-th time, or whenever it is too small.

    The places are on the way forward and back: each rank's exchanges are at another point in each of them.
    """

    place: str
    visits: int = -1
    most_images: int = 1 << 30
    error: Callable[[], Exception] = lambda: RuntimeError(HOST)

    def set(self, model: nn.Module) -> None:
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.register_forward_pre_hook(self._before)
        norm.register_forward_hook(self._after)

    def spring(self, place: str, images: int) -> None:
        if place != self.place:
            return
        self.visits -= 1
        if self.visits == 0 or images > self.most_images:
            raise self.error()

    def _before(self, _module: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        self.spring("before the norm", len(given[0]))
        passed: Tensor = _Passed.apply(given[0], self, "backward after it")  # type: ignore[no-untyped-call]
        return passed

    def _after(self, _module: nn.Module, _given: object, y: Tensor) -> Tensor:
        self.spring("after it", len(y))
        passed: Tensor = _Passed.apply(y, self, "backward before it")  # type: ignore[no-untyped-call]
        return passed


NEVER = Trap("")  # it is in the way all the same, which changes last bits


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, trap: Trap, place: str) -> Tensor:
        ctx.trap, ctx.place = trap, place
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.trap.spring(ctx.place, len(grad))
        return grad, None, None


def tiny() -> Made:
    return tiny_detector(), tiny_criterion()


def tiny8() -> Made:
    """Its matching needs the predictions first."""
    torch.manual_seed(3)
    model = zoo.build_model("tiny8", CLASSES).double()
    return model, criterion_of(model)


@pytest.fixture(scope="module", autouse=True)
def with_tiny8() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_free(patch)
        yield


def slices(comm: Communicator, *batches: Batch) -> list[Batch]:
    """This rank's, contiguous, with their place in the whole as the loader gives it."""
    found = []
    for batch in batches:
        first, last = (len(batch) * r // comm.size for r in (comm.rank, comm.rank + 1))
        inside = (batch.targets.image >= first) & (batch.targets.image < last)
        of = batch.targets
        targets = replace(
            of, image=of.image[inside] - first, classes=of.classes[inside], boxes_xywhn=of.boxes_xywhn[inside]
        )
        found.append(
            replace(
                batch,
                images=batch.images[first:last],
                targets=targets,
                indices=batch.indices[first:last],
                first=first,
            )
        )
    return found


def windows() -> list[list[Batch]]:
    return [[tiny_batch(7, 0)], [tiny_batch(5, 1), tiny_batch(6, 2)], [tiny_batch(3, 3)]]


def state_of(stepper: Stepper) -> dict[str, Any]:
    optimizer = stepper.optimizer.state_dict()["state"]
    return copied(
        {"model": stepper.model.state_dict(), "optimizer": optimizer, "scaler": stepper.scaler.state_dict()}
    )


def trained(
    comm: Communicator, made: Made, trap: Trap, split_before: int = 0, **how: Any
) -> tuple[list[StepResult], dict[str, Any], int]:
    """Three steps; what they gave, all state, and the batches that were taken from the loader."""
    model, criterion = made
    stepper = make_stepper(model, criterion=criterion, comm=comm, lr=0.01, **how)
    stepper.passes = Passes(SHARE)
    if comm.rank == comm.size - 1:
        trap.set(model)
    taken = 0
    results = []
    for number, window in enumerate(windows(), 1):
        if number == split_before:
            stepper.passes = Passes(SHARE, 2)
        batches = iter(slices(comm, *window, tiny_batch(1, 9)))
        results.append(stepper.step(batches, [1.0, 0.5][: len(window)]).result())
        taken += len(window) + 1 - len(list(batches))
    return results, state_of(stepper), taken


def in_world(make: Callable[[], Made], sync_bn: bool, trap: Trap, split_before: int = 0) -> list[Any]:
    return run_world(2, lambda comm: trained(comm, make(), trap, split_before, sync_bn=sync_bn, name="AdamW"))


@functools.cache
def split_from_the_start(make: Callable[[], Made], sync_bn: bool) -> list[Any]:
    return in_world(make, sync_bn, NEVER, 2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("sync_bn", [False, True])
@pytest.mark.parametrize(
    ("make", "visits"), [(tiny, 3), (tiny8, 2)]
)  # in the last batch of a step, in its first
def test_the_step_is_done_again_as_if_it_had_begun_with_smaller_passes(
    make: Callable[[], Made], sync_bn: bool, place: str, visits: int
) -> None:
    """Weights, statistics, the optimizer's state and the results are the same to the bit."""
    trap = Trap(place, visits)
    expected, found = split_from_the_start(make, sync_bn), in_world(make, sync_bn, trap)
    assert trap.visits < 0
    for (results, state, taken), (other_results, other_state, other_taken) in zip(
        expected, found, strict=True
    ):
        assert [result.redone for result in other_results] == [False, True, False]
        assert [replace(result, redone=False) for result in other_results] == results
        assert same_bits(other_state, state)
        assert other_taken == taken == 4


@pytest.mark.parametrize("place", PLACES)
def test_one_rank_alone_and_its_loss_scaler_are_as_before(place: str) -> None:
    expected = trained(LocalCommunicator(), tiny(), NEVER, 2, scaled=True)
    found = trained(LocalCommunicator(), tiny(), Trap(place, 3), scaled=True)
    assert found[0][1].redone
    assert same_bits(found[1], expected[1])


@pytest.mark.parametrize("sync_bn", [False, True])
@pytest.mark.parametrize(
    ("most", "words"), [(1, "also with 4 images in a pass"), (0, "also with 4 images in a pass")]
)
def test_a_second_time_ends_all_ranks_with_the_same_line(sync_bn: bool, most: int, words: str) -> None:
    trap = Trap("after it", most_images=most)

    def job(comm: Communicator) -> Any:
        return trained(comm, tiny(), trap, sync_bn=sync_bn)

    outcomes = world_outcomes(3, job)
    assert [type(outcome) for outcome in outcomes] == [MemoryShortError] * 3
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert words in str(outcomes[0]) and "this host is out of memory" in str(outcomes[0])
    assert "(on rank 2 of 3)" in str(outcomes[0])


def test_where_one_image_is_too_much_the_step_is_not_tried_again() -> None:
    stepper = make_stepper(tiny_detector())
    stepper.passes = Passes(SHARE, SHARE)
    Trap("after it", most_images=0).set(stepper.model)
    with pytest.raises(MemoryShortError, match="for a single image"):
        stepper.step(iter([tiny_batch(4, 0)]), [1.0]).result()


def test_another_fault_is_that_ranks_alone() -> None:
    trap = Trap("after it", 1, error=lambda: RuntimeError("shapes do not fit"))
    outcomes = world_outcomes(2, lambda comm: trained(comm, tiny(), trap))
    assert "shapes do not fit" in str(outcomes[1])
    assert not isinstance(outcomes[0], MemoryShortError)


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_with_synchronised_batch_norm_any_number_of_ranks_makes_the_same_passes(
    size: int, passes: int
) -> None:
    """So a step does not depend on the number of ranks, as long as the number of passes does not."""

    def job(comm: Communicator) -> tuple[list[StepResult], dict[str, Any]]:
        model = tiny_detector()
        stepper = make_stepper(model, comm=comm, sync_bn=True, lr=0.01)
        stepper.passes = Passes(SHARE, passes)
        results = [stepper.step(iter(slices(comm, *w)), [1.0] * len(w)).result() for w in windows()]
        return results, copied(model.state_dict())

    expected, weights = job(LocalCommunicator())
    for results, own in run_world(size, job):
        for result, alone in zip(results, expected, strict=True):
            assert result.losses == pytest.approx(alone.losses, rel=1e-9)
        for name, weight in own.items():
            torch.testing.assert_close(weight, weights[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("sync_bn", [False, True])
def test_a_trial_tells_all_ranks_what_the_smallest_lacks_and_leaves_no_trace(sync_bn: bool) -> None:
    limits = (5, 3)

    def job(comm: Communicator) -> tuple[int, str | None, bool]:
        stepper = make_stepper(tiny_detector(), comm=comm, sync_bn=sync_bn)
        before = state_of(stepper)
        Trap("after it", most_images=limits[comm.rank]).set(stepper.model)
        images = largest_pass(lambda count: stepper.lack_of_memory(tiny_batch(count, 0), 1.0), SHARE)
        words = stepper.lack_of_memory(tiny_batch(4, 0), 1.5)
        assert all(p.grad is None for p in stepper.model.parameters())
        return images, words, same_bits(state_of(stepper), before)

    words = f"this host is out of memory ({HOST}) (on rank 1 of 2)"
    assert run_world(2, job) == [(3, words, True)] * 2


@pytest.mark.parametrize("fits", range(1, 10))
def test_the_largest_pass_is_found_in_few_trials(fits: int) -> None:
    tried: list[int] = []

    def lack(images: int) -> str | None:
        tried.append(images)
        return "too much" if images > fits else None

    assert largest_pass(lack, 9) == fits
    assert tried[0] == 9 and len(tried) <= (1 if fits == 9 else 5)


def test_where_no_image_fits_it_is_the_users_to_change_something() -> None:
    with pytest.raises(UserError, match=r"too much for one image.*lower --imgsz"):
        largest_pass(lambda _: "too much", 9)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError(HOST), "this host is out of memory"),
        (MemoryError(), "this host is out of memory (MemoryError)"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "the GPU is out of memory (CUDA out of memory.)",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU is out of memory"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("can't"), None),
    ],
)
def test_a_lack_of_memory_is_told_from_other_faults(error: Exception, words: str | None) -> None:
    found = shortage(error)
    assert found is None if words is None else found is not None and found.startswith(words)
