from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.process import active_children
from pathlib import Path

import psutil
import pytest
import torch

from horovod_yolo.core.errors import DataWorkerError
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Batch, SampleKey
from horovod_yolo.data import loader as loader_module
from horovod_yolo.data.augment import AugmentParams, Sample, TrainTransform
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.sampler import StepSampler
from tests.unit.data.scenes import noise_scenes

COUNT = 10
NOISE = noise_scenes(COUNT, seed=1)
PARAMS = AugmentParams(degrees=10, mixup=0.3)
SAMPLES = TrainTransform(NOISE.annotations, NOISE.load, PARAMS, seed=0)
REPOSITORY = Path(__file__).resolve().parents[3]


def plan(rank: int = 0, size: int = 1, batch: int = 3, count: int = COUNT) -> StepSampler:
    return StepSampler(count, batch, rank, size, seed=5, shuffle=True, shape=(64, 96))


def odd_ones_unreadable(key: SampleKey) -> Sample:
    if key.index % 2:
        raise ImageError(Path("gone") / f"{key.index}.jpg", "no such file")
    return SAMPLES(key)


def faulty(key: SampleKey) -> Sample:
    raise RuntimeError("our own fault")


def suicidal(key: SampleKey) -> Sample:
    if key.epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return SAMPLES(key)


def without_slots(key: SampleKey) -> Sample:
    loader_module.usable = lambda: False  # type: ignore[assignment]  # in this worker
    return SAMPLES(key)


def slow(key: SampleKey) -> Sample:
    time.sleep(0.1)
    return SAMPLES(key)


def paired(key: SampleKey) -> Sample:
    return replace(SAMPLES(key), index=key.epoch + 100 * key.apart)


def noted(folder: Path, key: SampleKey) -> Sample:
    (folder / f"{key.epoch}-{key.index}").touch(exist_ok=False)
    return SAMPLES(key)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def loader(workers: int, sampler: StepSampler | None = None, sample_fn: object = SAMPLES) -> Iterator[Loader]:
    made = Loader(sample_fn, sampler or plan(), workers=workers, pin_memory=False)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def equal(a: list[Batch], b: list[Batch]) -> bool:
    def tensors(batch: Batch) -> list[torch.Tensor]:
        t = batch.targets
        return [batch.images, batch.indices, t.image, t.classes, t.boxes_xywhn]

    return len(a) == len(b) and all(
        torch.equal(p, q) and x.letterboxes == y.letterboxes
        for x, y in zip(a, b, strict=True)
        for p, q in zip(tensors(x), tensors(y), strict=True)
    )


def ended(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_batches_are_bitwise_the_same_for_any_number_of_workers() -> None:
    made = []
    for workers in (0, 1, 2):
        with loader(workers) as batches:
            made.append([batch for epoch in (0, 1) for batch in batches.epoch(epoch)])
    assert equal(made[0], made[1])
    assert equal(made[0], made[2])
    assert [len(batch) for batch in made[0]] == [3, 3, 3, 1] * 2
    assert made[0][0].images.shape == (3, 3, 64, 96)
    assert not torch.equal(made[0][0].images, made[0][4].images)


@pytest.mark.parametrize("workers", [0, 2])
def test_other_slices_come_with_the_next_batch_and_what_was_made_ahead_is_dropped(workers: int) -> None:
    parts = [Slices(4, 0, 1), Slices(4, 1, 4), Slices(4, 2, 2)]
    expected = []
    for slices in parts:
        with loader(0, replace(plan(batch=2), slices=slices)) as batches:
            expected.append(list(batches.epoch(0)))
    with loader(workers, replace(plan(batch=2), slices=parts[0])) as batches:
        epoch, got = batches.epoch(0), []
        for number in range(plan(batch=2).batches_per_epoch):
            if number in (1, 3):
                batches.share(parts[number // 2 + 1])
            got.append(next(epoch))
        assert equal(got, [expected[0][0], *expected[1][1:3], *expected[2][3:]])
        assert equal(list(batches.epoch(1)), list(batches.epoch(1)))
        assert [len(batch) for batch in batches.epoch(1)] == [0] * 5


def test_workers_do_without_slots_where_the_system_has_none() -> None:
    with loader(0) as alone, loader(1, sample_fn=without_slots) as loaded:
        for one, other in zip(alone.epoch(0), loaded.epoch(0), strict=True):
            assert torch.equal(one.images, other.images)
            assert other.images.is_shared(), "PyTorch's way of sending it"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_start_anywhere_and_be_left_anywhere(workers: int) -> None:
    with loader(workers) as batches:
        whole = list(batches.epoch(4))
        left = batches.epoch(2)
        next(left)
        assert equal(list(batches.epoch(4, start_batch=2)), whole[2:])
        assert list(batches.epoch(4, start_batch=4)) == []
        with pytest.raises(RuntimeError, match="later epoch"):
            next(left)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_be_prepared_in_vain(workers: int) -> None:
    with loader(workers) as batches:
        whole = list(batches.epoch(4))
        batches.prepare(2)
        batches.prepare(4)
        assert equal(list(batches.epoch(4)), whole)
        batches.prepare(4)
        assert equal(list(batches.epoch(4, start_batch=2)), whole[2:])
        batches.prepare(4)
        assert equal(list(batches.epoch(4)), whole)
        batches.prepare(2)


def test_workers_go_on_with_the_epoch_that_follows(tmp_path: Path) -> None:
    def made(epoch: int) -> int:
        return len(list(tmp_path.glob(f"{epoch}-*")))

    with loader(1, sample_fn=partial(noted, tmp_path)) as batches:
        first = batches.epoch(0, until=2)
        for _ in range(3):
            next(first)
        wait_until(lambda: made(1) == 3)  # beside the last batch, one of three images: two are made ahead
        assert len(list(first)) == 1
        wait_until(lambda: made(1) == 6)
        assert len(list(batches.epoch(1, until=2))) == 4
        assert len(list(batches.epoch(2))) == 4
        assert [made(epoch) for epoch in range(4)] == [COUNT, COUNT, COUNT, 0], "none twice, and none in vain"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rank_without_a_share_gets_an_empty_batch(workers: int) -> None:
    with loader(workers, plan(rank=0, size=4)) as batches:
        sizes = [len(batch) for batch in batches.epoch(0)]
        assert sizes == [0, 0, 0, 0]  # of 3, 3, 3 and 1 images the first of four ranks gets none
        (empty, *_) = batches.epoch(1)
        assert empty.images.shape == (0, 3, 64, 96)
        assert empty.targets.boxes_xywhn.shape == (0, 4)


def test_slices_of_all_ranks_are_the_batches_of_one() -> None:
    with loader(0) as batches:
        alone = list(batches.epoch(0))
    for rank in range(3):
        with loader(0, plan(rank, 3)) as batches:
            for mine, everyone in zip(batches.epoch(0), alone, strict=True):
                n = len(everyone)
                share = slice(n * rank // 3, n * (rank + 1) // 3)
                assert torch.equal(mine.images, everyone.images[share])
                assert torch.equal(mine.indices, everyone.indices[share])


def test_workers_live_on_between_epochs_and_end_with_the_loader() -> None:
    others = set(active_children())
    with loader(1) as batches:
        list(batches.epoch(0))
        (worker,) = set(active_children()) - others
        list(batches.epoch(1))
        assert set(active_children()) - others == {worker}
    assert set(active_children()) == others
    batches.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches.epoch(2))


def test_signals_to_the_whole_job_leave_workers_and_their_server_alone() -> None:
    others = set(active_children())
    with loader(1) as batches:
        epoch = batches.epoch(0)
        next(epoch)
        (worker,) = set(active_children()) - others
        server = psutil.Process(worker.pid).ppid()
        assert server != os.getpid()
        for name in ("INT", "TERM"):
            subprocess.run(["/bin/sh", "-c", f"kill -{name} {worker.pid} {server}"], check=True)
        assert not ended(worker.pid or 0, within_s=0.5) and not ended(server, within_s=0.5)
        assert len(list(epoch)) == 3
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # here they still arrive
        worker.terminate()  # from the trainer itself it counts
        assert ended(worker.pid or 0, within_s=20)


def test_workers_that_die_again_and_again_are_named_and_not_waited_for() -> None:
    with loader(1, sample_fn=suicidal) as batches:
        assert len(list(batches.epoch(0))) == 4
        begun = time.monotonic()
        with pytest.raises(DataWorkerError, match=r"data worker \d+ was killed by SIGKILL.*lower --workers"):
            list(batches.epoch(1))
        assert time.monotonic() - begun < 60


@pytest.mark.parametrize("moment", ["between epochs", "within an epoch", "while the next is begun"])
def test_a_killed_worker_is_replaced_and_no_batch_is_lost_or_changed(
    moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with loader(0) as batches:
        whole = [batch for epoch in (0, 1) for batch in batches.epoch(epoch)]
    others = set(active_children())
    with loader(2) as batches:
        made = list(batches.epoch(0, until=2 if moment == "while the next is begun" else 0))
        victim = min(child.pid or 0 for child in set(active_children()) - others)
        second = batches.epoch(1)
        if moment == "within an epoch":
            made.append(next(second))
        os.kill(victim, signal.SIGKILL)
        made += second
        assert equal(made, whole)
        assert equal(list(batches.epoch(0)), whole[:4]), "and the loader lives on"
        # It may have made all of its batches of that epoch, and then is missed in the next.
        assert caplog.text.count(f"data worker {victim} was killed by SIGKILL") == 1
    assert set(active_children()) == others


def test_a_worker_that_raises_has_not_died() -> None:
    with loader(1, sample_fn=faulty) as batches, pytest.raises(RuntimeError, match="our own fault"):
        next(batches.epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_made_are_left_out_and_their_images_named_once(
    workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with loader(workers, sample_fn=odd_ones_unreadable) as batches:
        for epoch in (0, 1):
            indices = [int(i) for batch in batches.epoch(epoch) for i in batch.indices]
            assert sorted(indices) == [0, 2, 4, 6, 8]
        assert sorted(batches.lost) == [f"gone/{i}.jpg" for i in (1, 3, 5, 7, 9)]
    assert [caplog.text.count(f"gone/{i}.jpg: no such file") for i in range(COUNT)] == [0, 1] * 5


def test_thousands_of_lost_images_are_not_all_listed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("horovod_yolo.data.loader.MOST_REPORTED", 2)
    with loader(0, sample_fn=odd_ones_unreadable) as batches:
        list(batches.epoch(0))
        assert len(batches.lost) == 5
    assert caplog.text.count("gone/") == 2
    assert caplog.text.count("more than 2 are not listed") == 1


TRAINER = """
import sys, time
from multiprocessing.process import active_children
from tests.unit.data.test_loader import loader
if __name__ == "__main__":
    with loader(2) as batches:
        next(batches.epoch(0))
        print(*(child.pid for child in active_children()), flush=True)
        time.sleep(60)
"""


def test_workers_end_when_their_trainer_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    with tempfile.TemporaryDirectory(prefix="job-") as folder:  # with what a killed process leaves
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": folder}
        with subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
        ) as trainer:
            assert trainer.stdout is not None
            workers = [int(pid) for pid in trainer.stdout.readline().split()]
            trainer.kill()
        assert len(workers) == 2
        assert all(ended(pid, within_s=20) for pid in workers)


def test_waiting_is_measured_from_the_start_of_the_epoch() -> None:
    with loader(0, sample_fn=slow) as batches:
        begun = time.perf_counter()
        list(batches.epoch(0))
        assert 1.0 <= batches.wait_s <= time.perf_counter() - begun
        next(batches.epoch(1, start_batch=3))
        assert 0.1 <= batches.wait_s < 1.0


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    before = torch.get_rng_state()
    with loader(workers) as batches:
        list(batches.epoch(0))
        list(batches.epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_that_are_kept_are_not_overwritten() -> None:
    """However many, and whatever is left of them."""
    with loader(0) as batches:
        expected = [batch for epoch in range(3) for batch in batches.epoch(epoch)]
    with loader(1) as batches:
        whole = list(batches.epoch(0))
        parts = [batch.images[:1] for batch in batches.epoch(1)]
        for _ in range(2):
            assert equal(list(batches.epoch(2)), expected[8:])
        assert equal(whole, expected[:4])
        assert all(
            torch.equal(part, made.images[:1]) for part, made in zip(parts, expected[4:8], strict=True)
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("until", [4, 9])
def test_images_stay_apart_from_another_epoch_on(workers: int, until: int) -> None:
    """Also in what was made ahead, and where that was of an epoch that is the last no more."""
    sampler = replace(plan(), unmixed_from=1)
    with loader(workers, sampler, paired) as batches:
        seen = {}
        for epoch, apart_from in enumerate((1, 3, 2, 2, 7)):
            batches.keep_apart(apart_from)
            indices = [batch.indices for batch in batches.epoch(epoch, until=until)]
            seen[epoch] = set(torch.cat(indices).tolist())
    assert seen == {0: {0}, 1: {1}, 2: {102}, 3: {103}, 4: {4}}
