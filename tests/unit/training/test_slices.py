"""Promise 1 to the bit: with fixed slices the number of ranks changes nothing at all."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Batch
from horovod_yolo.distributed.agreement import checksum
from horovod_yolo.distributed.communicator import Communicator, GradientExchange
from horovod_yolo.distributed.exact_sums import ExactExchange
from horovod_yolo.families import zoo
from horovod_yolo.losses.anchor_based import LossWeights
from horovod_yolo.losses.criterion import Criterion
from horovod_yolo.models.detector import Detector
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.events import StepResult
from horovod_yolo.training.optimizers import make_optimizer
from horovod_yolo.training.passes import Passes
from horovod_yolo.training.step import Stepper
from tests.helpers.pretend_device import NAME, pretend_device
from tests.helpers.tiny import CLASSES, tiny_batch, tiny_detector, tiny_head
from tests.helpers.tiny_free import add_tiny_free, criterion_of
from tests.helpers.world import run_world

from .test_out_of_memory import NEVER, Trap
from .test_step import Faulty

V = 8
Windows = Sequence[Sequence[Batch]]


def windows() -> Windows:
    """Full and short batches, with empty slices; accumulation; a batch of one image."""
    return [
        [tiny_batch(16, 0)],
        [tiny_batch(13, 1), tiny_batch(16, 2)],
        [tiny_batch(5, 3)],
        [tiny_batch(1, 4)],
        [tiny_batch(16, 5), tiny_batch(3, 6), tiny_batch(16, 7)],
    ]


def share(batch: Batch, mine: Slices) -> Batch:
    """What the loader of a rank with these slices gives."""
    places = mine.places(len(batch))
    part = batch._part(places[0], places[-1])
    sizes = tuple(end - start for start, end in pairwise(places))
    return replace(part, first=places[0], slices=sizes if len(sizes) > 1 else ())


def make(
    comm: Communicator,
    shares: Sequence[int],
    *,
    optimizer: str = "SGD",
    dtype: torch.dtype = torch.float32,
    passes: int = 1,
    scaled: bool = False,
    first_scale: float = 1024.0,
    exact: bool = True,
    factor: float = 1.0,
    model: Detector | None = None,
    together: int = 0,
    device: str = "cpu",
) -> Stepper:
    """What makes the steps of a rank, where the ranks have so many slices; losses are times the factor."""
    criterion: Criterion[Any, Any] | None = None if model is None else criterion_of(model)
    model = (tiny_detector(torch.float32) if model is None else model).to(device)
    first = sum(shares[: comm.rank])
    mine = Slices(V, first, first + shares[comm.rank])
    scaler = torch.amp.GradScaler(device, init_scale=first_scale, enabled=scaled)
    plain = make_optimizer(optimizer, model, lr=0.01, momentum=0.9, decay=0.01)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    exchange: GradientExchange
    if exact:
        exchange = ExactExchange(
            [parameter for _, parameter in named], comm, group_mb=0.001, scale=scaler.get_scale
        )
    else:
        plain, exchange = comm.exchange_gradients(plain, named, wire=None, group_mb=1.0)
    if criterion is None:
        criterion = Faulty(LossWeights(), tiny_head().float().to(device))
        criterion.factor = factor
    return Stepper(
        model=model,
        criterion=criterion,
        optimizer=plain,
        exchange=exchange,
        scaler=scaler,
        precision=Precision(device=torch.device(device), dtype=dtype),
        comm=comm,
        sync_bn=False,
        stop=StopRequest(),
        passes=Passes(2, passes, together),
        slices=mine,
    )


def step(stepper: Stepper, window: Sequence[Batch], scales: Sequence[float] = (1.0,) * 3) -> StepResult:
    part = [share(batch, stepper.slices) for batch in window]
    return stepper.step(iter(part), scales[: len(window)]).result()


def trained(
    comm: Communicator, shares: Sequence[int], scales: Sequence[float] = (1.0,) * 3, **case: Any
) -> tuple[list[StepResult], str]:
    """Results and a digest of weights, buffers and the optimizer's state."""
    stepper = make(comm, shares, **case)
    results = [step(stepper, window, scales) for window in windows()]
    state = stepper.optimizer.state_dict()["state"]
    moments = {f"{n}.{key}": torch.as_tensor(value) for n, own in state.items() for key, value in own.items()}
    return results, checksum({**stepper.model.state_dict(), **moments, **stepper.exchange.state_dict()})


SHARES = [
    (8,),
    (4, 4),
    (1, 7),
    (3, 5),
    (2, 2, 4),
    (2, 3, 3),
    (2, 2, 2, 2),
    (1,) * 8,
    (0, 8, 0),
    (1,) * 8 + (0,),
]


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"optimizer": "AdamW"},
        {"optimizer": "MuSGD"},
        {"dtype": torch.bfloat16},
        {"passes": 2},
        {"scaled": True},
        {"scales": (1.5, 0.5, 0.7)},
    ],
    ids=str,
)
def test_ranks_and_shares_change_no_bit(case: dict[str, Any]) -> None:
    expected = run_world(1, lambda comm: trained(comm, (V,), **case))[0]
    for shares in SHARES:
        hosts = (len(shares),) if shares[0] > 1 else (1,) * len(shares)  # over memory, or by messages
        outcomes = run_world(len(shares), partial(trained, shares=shares, **case), hosts=hosts)
        assert outcomes == [expected] * len(shares), shares


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("tiny8", {}),
        ("tiny8", {"passes": 2, "scales": (0.5, 1.0, 1.5)}),
        ("tiny8", {"scaled": True, "together": 16, "scales": (0.5, 1.0, 1.5)}),
        ("tiny26", {}),
        ("tiny26", {"optimizer": "MuSGD", "dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_nor_do_they_where_normalisers_depend_on_predictions(
    name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulation too. With a loss scaler, where predictions are kept, as with predictions made again."""
    add_tiny_free(monkeypatch)
    torch.manual_seed(3)
    model = zoo.build_model(name, CLASSES)

    def job(comm: Communicator, shares: Sequence[int], **case: Any) -> tuple[list[StepResult], str]:
        return trained(comm, shares, model=copy.deepcopy(model), **case)

    expected = run_world(1, lambda comm: job(comm, (V,), **{**case, "together": 0}))[0]
    assert run_world(3, lambda comm: job(comm, (2, 6, 0), **case)) == [expected] * 3


def test_predictions_that_are_too_much_to_keep_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has more passes by that, and no bit is another."""
    add_tiny_free(monkeypatch)
    torch.manual_seed(3)
    model = zoo.build_model("tiny8", CLASSES)

    def job(comm: Communicator, trap: Trap, together: int) -> tuple[StepResult, Passes, str]:
        stepper = make(comm, (3, 5), model=copy.deepcopy(model), together=together, scaled=True)
        trap.set(stepper.model)
        result = step(stepper, windows()[0])
        return result, stepper.passes, checksum(stepper.model.state_dict())

    expected = run_world(2, lambda comm: job(comm, NEVER, 0))
    trap = Trap("after it", 3)
    assert run_world(2, lambda comm: job(comm, trap if comm.rank else NEVER, 16)) == expected
    assert trap.visits < 0


@pytest.mark.parametrize("name", ["tiny8", "tiny26"])
def test_each_slice_goes_forward_once_and_is_divided_afterwards(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and norms are those of losses divided by a sum that is known before."""
    add_tiny_free(monkeypatch)
    torch.manual_seed(3)
    model = zoo.build_model(name, CLASSES)
    with torch.no_grad():  # so that the two heads' normalisers differ
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    def job(comm: Communicator, **case: Any) -> tuple[list[StepResult], list[int]]:
        stepper = make(comm, (3, 5), model=copy.deepcopy(model), **case)
        ways: list[int] = []
        stepper.model.register_forward_hook(lambda *_: ways.append(comm.rank))
        results = [step(stepper, window) for window in (windows()[0], windows()[1])]
        assert name == "tiny8" or not case or len(set(map(float, stepper._totals[0].values()))) == 3
        return results, ways

    early = run_world(2, lambda comm: job(comm, exact=False))
    late = run_world(2, job)
    for (mine, _), (theirs, _) in zip(late, early, strict=True):
        for own, other in zip(mine, theirs, strict=True):
            assert own.losses == pytest.approx(other.losses, rel=1e-3)
            assert own.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
    # Three batches; in the first step one is done again with the powers of two that it has told.
    assert [len(ways) for _, ways in late] == [3 * 4, 5 * 4]


def test_nor_do_they_in_float16_on_a_device() -> None:
    """With a scaler, whose first scale is too large: a step is skipped."""

    def job(comm: Communicator, shares: Sequence[int]) -> tuple[list[StepResult], str]:
        with pretend_device():
            stepper = make(comm, shares, scaled=True, first_scale=2.0**18, dtype=torch.float16, device=NAME)
            results = [step(stepper, window) for window in windows()[:3]]
            return results, checksum(stepper.model.state_dict())

    expected = run_world(1, lambda comm: job(comm, (V,)))[0]
    assert [result.skipped for result in expected[0]] == [True, False, False]
    assert run_world(2, lambda comm: job(comm, (3, 5))) == [expected] * 2


def test_they_are_the_sums_of_floats_to_rounding() -> None:
    for shares in ((V,), (3, 5)):
        exact, floats = (
            run_world(len(shares), partial(trained, shares=shares, exact=e))[0][0] for e in (True, False)
        )
        for mine, theirs in zip(exact, floats, strict=True):
            assert mine.losses == pytest.approx(theirs.losses, rel=1e-4)
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-2, 1e3, 1e9])
def test_a_gradient_of_another_size_than_expected_is_added_up_all_the_same(factor: float) -> None:
    def job(comm: Communicator) -> tuple[StepResult, list[Tensor]]:
        stepper = make(comm, (3, 5), factor=1.0)
        step(stepper, windows()[0])
        stepper.criterion.factor = factor  # type: ignore[attr-defined]
        result = step(stepper, windows()[1])
        return result, [p.detach().clone() for p in stepper.model.parameters()]

    result, weights = run_world(2, job)[0]
    assert not result.skipped
    usual = run_world(2, lambda comm: trained(comm, (3, 5)))[0][0][1].grad_norm
    assert result.grad_norm == pytest.approx(usual * factor, rel=1e-3)
    assert all(bool(weight.isfinite().all()) for weight in weights)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_in_one_slice_is_skipped_by_all(bad: float) -> None:
    def job(comm: Communicator) -> tuple[list[bool], bool]:
        stepper = make(comm, (3, 5))
        first = step(stepper, windows()[0])
        before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
        stepper.criterion.factor = bad if comm.rank == 1 else 1.0  # type: ignore[attr-defined]
        second = step(stepper, windows()[1])
        same = all(torch.equal(tensor, before[n]) for n, tensor in stepper.model.state_dict().items())
        stepper.criterion.factor = 1.0  # type: ignore[attr-defined]
        return [first.skipped, second.skipped, step(stepper, windows()[2]).skipped], same

    assert run_world(2, job) == [([False, True, False], True)] * 2
