"""The record of the last steps' gradients: a ring that survives resumes, cuts and full disks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from horovod_yolo.core.types import Ints
from horovod_yolo.telemetry.gradient_record import NAME, GradientRecord, Layout, recorded_gradients
from horovod_yolo.training.events import RunStart, StepReport, StepResult
from horovod_yolo.training.schedule import Rates, Schedule

TENSORS = ("stem.weight", "head.bias")
SCHEDULE = Schedule(
    epochs=9, batches_per_epoch=4, accumulate=2, lr0=0.01, lrf=0.1, cosine=False, momentum=0.9,
    warmup_epochs=0.0, warmup_momentum=0.8, warmup_bias_lr=0.1,
)  # fmt: skip
RATES = Rates(lr=0.01, bias_lr=0.05, momentum=0.9, beta1=0.9)


def digests(step: int) -> Ints:
    """Of one batch in odd steps, of two in even ones."""
    shape = (2 - step % 2, 3, 2)
    return np.random.default_rng(step).integers(-(2**63), 2**63 - 1, shape, dtype=np.int64)


def record(folder: Path, first: int, last: int, steps: int = 4) -> None:
    """Record steps from the first to the last, after those before."""
    writer = GradientRecord(folder, steps, 3, TENSORS)
    writer.on_start(RunStart(first - 1, 0, 0, SCHEDULE, ()))
    for step in range(first, last + 1):
        result = StepResult({}, 16, 1.0, False, slice_digests=digests(step))
        writer.on_step(StepReport(step, 0, RATES, result))


def found(folder: Path) -> list[int]:
    """The steps that are recorded, whose digests must be theirs."""
    kept = recorded_gradients(folder)
    assert kept is not None
    assert kept[0] == Layout(kept[0].steps, 2, 3, TENSORS)
    assert all(np.array_equal(values, digests(step)) for step, values in kept[1].items())
    return sorted(kept[1])


def test_the_last_steps_are_kept(tmp_path: Path) -> None:
    assert recorded_gradients(tmp_path) is None
    record(tmp_path, 1, 3)
    assert found(tmp_path) == [1, 2, 3]
    record(tmp_path, 4, 10)
    assert found(tmp_path) == [7, 8, 9, 10]
    assert (tmp_path / NAME).stat().st_size < 1000


def test_a_resumed_run_drops_the_steps_that_its_checkpoint_does_not_know(tmp_path: Path) -> None:
    record(tmp_path, 1, 7)
    record(tmp_path, 6, 5)
    assert found(tmp_path) == [4, 5]
    record(tmp_path, 6, 6)
    assert found(tmp_path) == [4, 5, 6]
    record(tmp_path, 7, 8, steps=2)
    assert found(tmp_path) == [7, 8], "another size is another file"


def test_a_step_that_was_not_written_whole_is_left_out(tmp_path: Path) -> None:
    record(tmp_path, 1, 4)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[data.index(b"\n") + 1 + 20] ^= 1  # of the place of step 4
    (tmp_path / NAME).write_bytes(data[:-3])  # and of step 3
    assert found(tmp_path) == [1, 2]


def test_a_folder_that_refuses_it_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record(tmp_path / "gone", 1, 3)
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message.endswith("No such file or directory; steps are missing there")


SOUND = b'{"version": 1, "steps": 4, "batches": 2, "slices": 3, "tensors": ["a"]}\n'


def test_sizes_that_a_damaged_file_tells_are_not_believed(tmp_path: Path) -> None:
    large = SOUND.replace(b"4", b"2000000000").replace(b"3", b"2000000000")
    for content in (SOUND, large):
        head = (7).to_bytes(8, "little") + (2).to_bytes(4, "little") + bytes(4)
        (tmp_path / NAME).write_bytes(content + head + bytes(100))
        kept = recorded_gradients(tmp_path)
        assert kept is not None and kept[1] == {}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}\n", b"[]\n", b"no json\n", b'{"version": 2}\n'),
        *(SOUND.replace(b"4", number) for number in (b"0", b"true", b"4e9", b"9999999999")),
        SOUND.replace(b'["a"]', b"[1]"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"Expecting value|of another version|does not say"):
        recorded_gradients(tmp_path)
