"""``--compile``: what a pass computes follows from its size and the settings, not from what was before.

By PyTorch's real compiler, which takes seconds for a network of a thousand parameters. Whole runs are in
tests/parallel/test_compile.py.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from horovod_yolo.core.slices import Slices
from horovod_yolo.distributed.agreement import checksum
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.families import zoo
from horovod_yolo.training.compiled import CompiledNetwork, Sizes
from horovod_yolo.training.events import StepResult
from horovod_yolo.training.running_statistics import RunningStatistics
from horovod_yolo.training.step import Stepper
from tests.helpers.tiny import CLASSES, tiny_batch
from tests.helpers.tiny_free import add_tiny_free
from tests.helpers.world import run_world

from .test_slices import V, make, share, step, windows

# PyTorch's compiler hides warnings of its own making, which it cannot where they are errors.
pytestmark = pytest.mark.filterwarnings("ignore")
SIDES, STRIDE = (32, 48), 16  # of tiny batches
BATCH = 16


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's, with a folder of its own; its threads end here."""
    if shutil.which("g++") is None:
        pytest.skip("LOUD SKIP: there is no g++; nothing is compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield
        torch.compiler.reset()


class Counting(CompiledNetwork):
    """Notes the passes that go through compiled code."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[tuple[int, ...]] = []

    def _through(self, x: Any) -> Any:
        self.seen.append((len(x), *x.shape[2:]))
        return super()._through(x)


def compiled(stepper: Stepper, *, vary: bool = False) -> Counting:
    """Let a stepper's full batches go through compiled code."""
    passes, slices = stepper.passes.count, stepper.slices.count
    sizes = Sizes.of(BATCH, slices, passes, sides=SIDES, stride=STRIDE, vary=vary)
    options = {"compile_threads": 1, "cpp.threads": 1, "force_layout_optimization": True}
    network = Counting(stepper.model, sizes, options)
    statistics = RunningStatistics(stepper.model, 1)
    statistics.begin()
    network.make(stepper.precision)
    stepper.use(network, tiny_batch(1, 0))
    statistics.restore()
    network.seen.clear()
    return network


def trained(
    comm: Communicator, shares: Sequence[int], *, name: str, scales: Sequence[float], **case: Any
) -> tuple[list[StepResult], str, set[tuple[int, ...]]]:
    """Results, a digest of all that training changes, and the compiled passes of all ranks."""
    torch.manual_seed(3)
    model = None if name == "anchors" else zoo.build_model(name, CLASSES)
    stepper = make(comm, shares, model=model, **case)
    network = compiled(stepper, vary=scales[0] != 1)
    results = [step(stepper, window, scales) for window in windows()]
    state = stepper.optimizer.state_dict()["state"]
    moments = {f"{n}.{key}": torch.as_tensor(value) for n, own in state.items() for key, value in own.items()}
    seen = {one for of_rank in comm.allgather_object(network.seen) for one in of_rank}
    return results, checksum({**stepper.model.state_dict(), **moments}), seen


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("anchors", {"scales": (1.0, 1.0, 1.0)}),
        ("anchors", {"scales": (1.5, 0.5, 1.0), "passes": 2}),
        # Divided late, by two numbers; and early, so that predictions are made twice.
        pytest.param("tiny26", {"scales": (1.0, 1.0, 1.0)}, marks=pytest.mark.slow),
        pytest.param("tiny8", {"scales": (1.5, 0.5, 1.0), "scaled": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ranks_change_no_bit(name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has passed before: full and short batches, empty slices, sizes that vary."""
    add_tiny_free(monkeypatch)
    images = BATCH // V // case.get("passes", 1)
    strides = [(SIDES[0] * scale / STRIDE, SIDES[1] * scale / STRIDE) for scale in case["scales"]]
    sides = {(round(height) * STRIDE, round(width) * STRIDE) for height, width in strides}
    expected = run_world(1, lambda comm: trained(comm, (V,), name=name, **case))[0]
    assert expected[2] == {(images, *one) for one in sides if min(one) >= 2 * STRIDE}
    assert run_world(3, lambda comm: trained(comm, (2, 6, 0), name=name, **case)) == [expected] * 3


@pytest.mark.usefixtures("compiler")
def test_a_step_is_that_of_the_network_as_it_is_written() -> None:
    """To rounding; what is shorter than a full batch, and no slice, to the bit."""
    written, other = make(LocalCommunicator(), (V,)), make(LocalCommunicator(), (V,))
    network = compiled(other)
    keys = list(other.model.state_dict())
    for batch, exact in ((tiny_batch(5, 3), True), (tiny_batch(1, 4), True), (tiny_batch(16, 5), False)):
        network.seen.clear()
        ours, theirs = step(other, [batch]), step(written, [batch])
        assert bool(network.seen) is not exact
        if exact:
            assert ours == theirs and checksum(other.model.state_dict()) == checksum(
                written.model.state_dict()
            )
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
    for own, expected in zip(
        other.model.state_dict().values(), written.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)
    assert list(other.model.state_dict()) == keys == list(copy.deepcopy(other.model).state_dict())


@pytest.mark.usefixtures("compiler")
def test_nothing_is_compiled_after_the_first_step_however_sizes_vary() -> None:
    stepper = make(LocalCommunicator(), (V,))
    network = compiled(stepper, vary=True)
    made = counters["stats"]["unique_graphs"]
    assert made > 0
    for number, scale in enumerate((0.5, 0.75, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0)):
        step(stepper, [tiny_batch(16, number)], [scale])
        step(stepper, [tiny_batch(11, number)], [scale])
    assert len(set(network.seen)) >= 7
    assert counters["stats"]["unique_graphs"] == made


def test_what_does_not_compile_raises_a_runtime_error() -> None:
    """Nobody trains as it is written where the flag was given."""
    stepper = make(LocalCommunicator(), (V,))
    sizes = Sizes.of(BATCH, V, 1, sides=SIDES, stride=STRIDE, vary=False)
    with pytest.raises(RuntimeError, match="no option"):
        CompiledNetwork(stepper.model, sizes, {"no option": True})


@given(st.data())
def test_sizes_are_those_of_full_batches_on_any_ranks(data: st.DataObject) -> None:
    batch, slices = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 16))
    passes, ranks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    seen = set()
    whole = tiny_batch(batch, 0, (1, 1))
    for rank in range(ranks):
        part = share(whole, Slices.even(slices, rank, ranks))
        seen |= {len(one) for of_slice in part.in_slices() for one in of_slice.split(passes)}
    sizes = Sizes.of(batch, slices, passes, sides=(64, 64), stride=32, vary=False)
    assert sizes.images == seen - {0}


@pytest.mark.parametrize(
    ("shape", "fixed", "vary"),
    [
        ((8, 3, 64, 64), True, True),
        ((7, 3, 64, 64), True, True),
        ((6, 3, 64, 64), False, False),  # an epoch's last batch
        ((0, 3, 64, 64), False, False),
        ((8, 3, 96, 64), False, True),
        ((8, 3, 96, 32), False, False),  # one cell wide
    ],
)
def test_which_passes_are_compiled(shape: tuple[int, ...], fixed: bool, vary: bool) -> None:
    for varies, expected in ((False, fixed), (True, vary)):
        sizes = Sizes.of(15, 2, 1, sides=(64, 64), stride=32, vary=varies)
        assert (torch.zeros(shape) in sizes) is expected
    assert str(Sizes.of(15, 2, 1, sides=(64, 64), stride=32, vary=False)) == "7 and 8 images of 64 x 64 px"
