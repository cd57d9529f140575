"""Batches of one rank, made ahead of time by worker processes.

Workers start from a fork server, not by forking the trainer: a fork after Horovod or MPI has started
threads copies locks that nobody will ever release. They live as long as the loader. What they make
does not depend on how many they are.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess, active_children
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from horovod_yolo.data.augment import Sample
from horovod_yolo.data.collate import collate
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.types import Batch, SampleKey

PREFETCH_PER_WORKER = 2  # batches made ahead
_JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
_PRELOAD = ["horovod_yolo.data.loader"]  # brings torch, numpy and OpenCV: imported once, not by each worker


@dataclass(frozen=True)
class _Request:
    """What a worker is asked for. An empty list of keys still has a shape."""

    keys: list[SampleKey]
    height: int
    width: int


class _Batches(Dataset[Batch | ImageError]):
    """Turns a request into a batch, in whichever process it runs.

    An image that cannot be read is returned, not raised: PyTorch would bring it back from a worker
    as a RuntimeError, and the caller could not tell it from a fault of the program.
    """

    def __init__(self, sample_fn: Callable[[SampleKey], Sample]) -> None:
        self._sample_fn = sample_fn

    def __getitem__(self, request: _Request) -> Batch | ImageError:
        try:
            samples = [self._sample_fn(key) for key in request.keys]
        except ImageError as error:
            return error
        return collate(samples, request.height, request.width)


class _Requests(Sampler[_Request]):
    """The requests of one epoch. Mutable because a DataLoader with living workers keeps its sampler."""

    def __init__(self, plan: StepSampler) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[_Request]:
        epoch, start = self.epoch, self.start
        for batch in range(start, self.plan.batches_per_epoch):
            yield _Request(self.plan.rank_keys(epoch, batch), *self.plan.shape_of(batch))


def _as_it_is(item: Any) -> Any:
    return item


class Loader:
    """This rank's batches, epoch by epoch.

    Args:
        sample_fn: makes the sample of a key. Picklable where there are workers.
        sampler: the plan of this rank.
        workers: processes; 0 makes the batches in the caller's own process, when asked for.
        pin_memory: give tensors in page-locked memory. Without a GPU this has no effect.

    Attributes:
        wait_s: seconds the consumer has waited for data since the start of the epoch.
    """

    def __init__(
        self,
        sample_fn: Callable[[SampleKey], Sample],
        sampler: StepSampler,
        *,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.wait_s = 0.0
        self._epochs_begun = 0
        self._requests = _Requests(sampler)
        self._workers: list[BaseProcess] = []
        self._iterator: Iterator[Batch | ImageError] = iter(())
        self._dataloader: DataLoader[Batch | ImageError] | None = DataLoader(
            _Batches(sample_fn),
            sampler=self._requests,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),  # so that iterating leaves torch's global generator alone
            multiprocessing_context=_forkserver() if workers else None,
            prefetch_factor=PREFETCH_PER_WORKER if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_settle_in,
        )

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's slice of each global batch from ``start_batch`` on, in order.

        A slice may be empty: its batch has B = 0, and the rank still takes part in the step. An
        epoch left early costs no more than the batches made ahead.

        Raises:
            RuntimeError: a worker died, the loader is closed, or a later epoch has begun.
            ImageError: an image cannot be read.
        """
        begun = time.perf_counter()
        self._begin(epoch, start_batch)
        mine, self.wait_s = self._epochs_begun, time.perf_counter() - begun
        while True:
            if mine != self._epochs_begun:
                raise RuntimeError("this epoch is over: the loader was closed or a later epoch has begun")
            begun = time.perf_counter()
            batch = next(self._iterator, None)
            self.wait_s += time.perf_counter() - begun
            if batch is None:
                return
            if isinstance(batch, ImageError):
                raise batch
            yield batch

    def _begin(self, epoch: int, start_batch: int) -> None:
        """Send the first requests; the first time, start the workers."""
        if self._dataloader is None:
            raise RuntimeError("the loader is closed")
        self._epochs_begun += 1
        self._requests.epoch, self._requests.start = epoch, start_batch
        others = active_children()
        self._iterator = iter(self._dataloader)
        self._workers += [child for child in active_children() if child not in others]

    def close(self) -> None:
        """End the workers. Closing twice is fine."""
        self._epochs_begun += 1
        self._dataloader = None
        self._iterator = iter(())  # with its last reference the old iterator sends its workers home
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers = []


def _forkserver() -> BaseContext:
    """Start the fork server, deaf to the job's signals, as all it forks will be.

    Ctrl-C and a scheduler's SIGTERM go to the whole process group, but only the trainer may answer
    them: it still needs its workers, and they the server, until it has written its checkpoint.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # lifts such a block whenever it starts, so it has to start before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _settle_in(_worker: int) -> None:
    """Make a new worker single-threaded, deaf to the job's signals, and mortal.

    The trainer's own SIGTERM ends a worker. So does the trainer's death, however sudden: PyTorch's
    watchdog looks at the parent process, which here is the fork server, and that one waits for the
    workers.
    """
    cv2.setNumThreads(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _JOB_SIGNALS)  # the fork server may be older than this loader
    trainer = parent_process()
    assert trainer is not None, "runs in a child process only"
    threading.Thread(target=_end_on_request_of, args=(trainer,), daemon=True).start()
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_on_request_of(trainer: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer.pid:
        pass
    os._exit(0)


def _end_with(trainer: BaseProcess) -> None:
    trainer.join()
    os._exit(1)
