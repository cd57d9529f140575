"""Batches of one rank, made ahead of time by worker processes.

The workers live as long as the loader. What they make does not depend on how many they are.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess, active_children
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from horovod_yolo.core.errors import DataWorkerError
from horovod_yolo.core.slices import Slices
from horovod_yolo.core.types import Batch, LostImage, SampleKey
from horovod_yolo.data import workers
from horovod_yolo.data.augment import Sample
from horovod_yolo.data.collate import collate
from horovod_yolo.data.read import ImageError
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.data.slots import Slots, sent, usable
from horovod_yolo.io.remote import shown

log = logging.getLogger(__name__)
T = TypeVar("T")

PREFETCH_PER_WORKER = 2  # batches made ahead
MOST_REPORTED = 100  # lost images that are listed one by one
_PRELOAD = ["horovod_yolo.data.loader"]  # brings torch, numpy and OpenCV: imported once, not by each worker


@dataclass(frozen=True)
class _Request:
    """What a worker is asked for. An empty list of keys still has a shape."""

    keys: list[SampleKey]
    height: int
    width: int
    first: int  # place of the first of them in the global batch
    slices: tuple[int, ...]  # of how many of them each slice is
    left_out: frozenset[int]  # images of the data set


class _Batches(Dataset[Batch]):
    """Turns a request into a batch, in whichever process it runs.

    A sample that cannot be made is left out, and its image named in the batch.
    """

    def __init__(self, sample_fn: Callable[..., Sample]) -> None:
        self._sample_fn = sample_fn
        self._slots: Slots | None = None

    def __getitem__(self, request: _Request) -> Batch:
        samples: list[Sample] = []
        unmade: list[LostImage] = []
        slices: list[int] = []
        keys = iter(request.keys)
        others = (request.left_out,) if request.left_out else ()
        for size in request.slices:
            before = len(samples)
            for key in islice(keys, size):
                try:
                    samples.append(self._sample_fn(key, *others))
                except ImageError as error:
                    unmade.append(LostImage(shown(error.path), error.reason, key.index))
            slices.append(len(samples) - before)
        place = partial(replace, first=request.first, slices=tuple(slices) if len(slices) > 1 else ())
        if get_worker_info() is None or not usable():
            return place(collate(samples, request.height, request.width, unmade))
        self._slots = self._slots or Slots()
        slot = self._slots.take((len(samples), 3, request.height, request.width))
        batch = collate(samples, request.height, request.width, unmade, slot.images)
        return sent(place(batch), slot)


class _Requests(Sampler[_Request]):
    """The requests of some epochs. Mutable because a DataLoader with living workers keeps its sampler."""

    def __init__(self, plan: StepSampler) -> None:
        self.plan = plan
        self.first = (0, 0)  # epoch and batch
        self.until = 0  # epoch
        self.asked = 0  # the last epoch that any batch was asked for
        self.left_out: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[_Request]:
        at: tuple[int, int] | None = self.first
        while at is not None:
            epoch, batch = at
            self.asked = epoch
            yield self.of(self.plan, epoch, batch)
            at = self.after(epoch, batch)

    def of(self, plan: StepSampler, epoch: int, batch: int) -> _Request:
        """That of a batch, by this plan or another rank's."""
        place = plan.first_place(epoch, batch), plan.slice_sizes(epoch, batch)
        return _Request(plan.rank_keys(epoch, batch), *plan.shape_of(batch), *place, self.left_out)

    def after(self, epoch: int, batch: int) -> tuple[int, int] | None:
        """What follows a batch; None: it is the last."""
        if batch + 1 < self.plan.batches_per_epoch:
            return epoch, batch + 1
        return (epoch + 1, 0) if epoch + 1 < self.until else None


def _as_it_is(item: Any) -> Any:
    return item


class Loader:
    """This rank's batches, epoch by epoch.

    A worker that dies is replaced once. What it had made is made again: a batch depends on its keys and the
    images only, so none is lost, doubled or changed.

    Args:
        sample_fn: makes the sample of a key; after `leave_out`, of a key and the positions of images that
            are not to be in it. Picklable where there are workers.
        sampler: the plan of this rank.
        workers: processes; 0 makes the batches in the caller's own process, when asked for.
        pin_memory: give tensors in page-locked memory, which needs CUDA and makes a context on its device.

    Attributes:
        wait_s: seconds the consumer has waited for data since the start of the epoch.
        lost: images that could not be read since the loader was made, each once, by path.
    """

    def __init__(
        self,
        sample_fn: Callable[..., Sample],
        sampler: StepSampler,
        *,
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.wait_s = 0.0
        self.lost: dict[str, LostImage] = {}
        self._epochs_begun = 0
        self._at: tuple[int, int] | None = None  # epoch and batch that the iterator gives next
        self._restarted = False
        self._requests = _Requests(sampler)
        self._workers: list[BaseProcess] = []
        self._iterator: Iterator[Batch] = iter(())
        self._here = _Batches(sample_fn)
        self._make = partial(_dataloader, _Batches(sample_fn), self._requests, workers, pin_memory)
        self._dataloader: DataLoader[Batch] | None = self._make()

    def epoch(self, epoch: int, start_batch: int = 0, until: int = 0) -> Iterator[Batch]:
        """Yield this rank's slice of each global batch from ``start_batch`` on, in order.

        A slice may be empty: its batch has B = 0, and the rank still takes part in the step. It is shorter
        than planned where samples could not be made. An epoch left early costs no more than the batches
        made ahead. These may be of the next epoch, where it comes before the epoch ``until``: so workers do
        not wait for what is between two epochs.

        Raises:
            RuntimeError: the loader is closed, or a later epoch has begun.
            DataWorkerError: a second worker has died.
        """
        self._epochs_begun += 1
        mine, self.wait_s = self._epochs_begun, 0.0
        for number in range(start_batch, self._requests.plan.batches_per_epoch):
            if mine != self._epochs_begun:
                raise RuntimeError("this epoch is over: the loader was closed or a later epoch has begun")
            begun = time.perf_counter()
            batch = self._in_spite_of_a_death(partial(self._batch, epoch, number, until))
            self.wait_s += time.perf_counter() - begun
            self._report(batch.lost)
            yield batch

    def leave_out(self, positions: Iterable[int]) -> None:
        """Do without these images of the data set from the next call of `epoch` on, for good."""
        self._requests.left_out |= frozenset(positions)
        self._at = None  # what was made ahead may have them

    def share(self, slices: Slices) -> None:
        """Make other slices from the next batch on. Of what was made ahead nothing is given out."""
        self._requests.plan = replace(self._requests.plan, slices=slices)
        self._at = None

    def keep_apart(self, epoch: int) -> None:
        """Mix no images from this epoch on. What was made ahead is given out where it is the same."""
        before, plan = self._requests.plan.unmixed_from, self._requests.plan
        self._requests.plan = replace(plan, unmixed_from=epoch)
        if before != epoch and self._requests.asked >= min(epoch, epoch if before is None else before):
            self._at = None

    def prepare(self, epoch: int) -> None:
        """Let the workers begin with the first batches of an epoch, which `epoch` is to give next."""
        if self._requests.plan.batches_per_epoch:
            self._in_spite_of_a_death(partial(self._begin, epoch, 0, 0))

    def made(self, epoch: int, number: int, slices: Slices) -> Batch:
        """Other slices of a global batch than this rank's, made here and now."""
        plan = replace(self._requests.plan, slices=slices)
        return self._here[self._requests.of(plan, epoch, number)]

    def _batch(self, epoch: int, number: int, until: int) -> Batch:
        if self._at != (epoch, number):
            self._begin(epoch, number, until)
        self._at = None  # until it is known that the iterator goes on
        batch = next(self._iterator)
        self._at = self._requests.after(epoch, number)
        return batch

    def _in_spite_of_a_death(self, work: Callable[[], T]) -> T:
        """What ``work`` gives, done once more where a worker dies meanwhile."""
        while True:
            try:
                return work()
            except (RuntimeError, OSError, EOFError) as error:  # what PyTorch makes of a worker's death
                death = workers.first_death(self._workers)
                if death is None:
                    raise
                if self._restarted:
                    raise DataWorkerError(f"{death}, the second of this rank that died") from error
            self._restart(death)

    def _begin(self, epoch: int, start_batch: int, until: int) -> None:
        """Send the first requests; the first time, start the workers."""
        self._at = None
        if self._dataloader is None:
            raise RuntimeError("the loader is closed")
        self._requests.first, self._requests.until = (epoch, start_batch), until
        others = active_children()
        try:
            self._iterator = iter(self._dataloader)
        finally:
            self._workers += [child for child in active_children() if child not in others]
        self._at = (epoch, start_batch)

    def _restart(self, death: str) -> None:
        """Begin anew with other workers and other queues: the dead one may have held a queue's lock."""
        log.warning("%s; the data workers of this rank are started again, once", death)
        self._restarted, self._at = True, None
        for worker in self._workers:
            worker.kill()
        self._workers = []
        old = [self._dataloader, self._iterator]
        self._dataloader, self._iterator = self._make(), iter(())
        # With its last reference the old iterator tidies up, and waits for ever where such a lock is left.
        threading.Thread(target=old.clear, daemon=True).start()

    def _report(self, lost: Sequence[LostImage]) -> None:
        for image in lost:
            if image.path not in self.lost:
                self.lost[image.path] = image
                if len(self.lost) <= MOST_REPORTED:
                    log.warning("image lost: %s: %s", image.path, image.reason)
                elif len(self.lost) == MOST_REPORTED + 1:
                    log.warning("image lost: more than %d are not listed", MOST_REPORTED)

    def close(self) -> None:
        """End the workers. Closing twice is fine."""
        self._epochs_begun += 1
        self._dataloader, self._at = None, None
        self._iterator = iter(())  # with its last reference the old iterator sends its workers home
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()
        self._workers = []


# Of the machine's cores, where torch counts those of one process. What a rank has is its own business.
warnings.filterwarnings("ignore", message="This DataLoader will create", module="torch.utils.data.dataloader")


def _dataloader(batches: _Batches, requests: _Requests, count: int, pin_memory: bool) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        sampler=requests,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=count,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # so that iterating leaves torch's global generator alone
        multiprocessing_context=workers.forkserver_context(_PRELOAD) if count else None,
        prefetch_factor=PREFETCH_PER_WORKER if count else None,
        persistent_workers=count > 0,
        worker_init_fn=workers.settle_in,
    )
