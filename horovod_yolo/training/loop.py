"""The loop. It asks neither for the rank nor for the network: both were decided at assembly."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from horovod_yolo.checkpoint.state import EarlyStopping, Progress, training_state
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import FaultyRankError, MemoryShortError, PrunedError, StoppedError
from horovod_yolo.core.types import Batch, SampleKey
from horovod_yolo.data.augment import Sample
from horovod_yolo.data.loader import Loader
from horovod_yolo.data.sampler import StepSampler
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.lost_images import most_lost, require_images
from horovod_yolo.metrics.scores import Evaluation, metrics_of
from horovod_yolo.process.stop import StopRequest
from horovod_yolo.training.balance import Balance
from horovod_yolo.training.double_check import DoubleChecks
from horovod_yolo.training.ema import Ema
from horovod_yolo.training.evaluator import Evaluator
from horovod_yolo.training.events import Callback, EpochReport, PlanReport, RunStart, SharesReport, StepReport
from horovod_yolo.training.optimizers import apply_rates
from horovod_yolo.training.pace import Spent
from horovod_yolo.training.scaling import factors_of
from horovod_yolo.training.schedule import Rates, Schedule, Window
from horovod_yolo.training.step import Stepper
from horovod_yolo.training.time_plan import TimePlan
from horovod_yolo.training.underway import LostImagesError, Step
from horovod_yolo.training.unlike_ranks import with_weights_of_rank_0

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer:
    """All that a run needs, put together in `assembly.build`.

    The losses of a step, and whether it was skipped, are read ``arrears`` steps later, so that a device has
    work meanwhile; before a commit, an epoch's end and a stop all of them are. It is the same on all ranks.
    """

    config: TrainConfig
    names: tuple[str, ...]
    comm: Communicator
    stepper: Stepper
    ema: Ema
    schedule: Schedule
    transform: Callable[[SampleKey], Sample]
    sampler: StepSampler
    loader: Loader
    evaluator: Evaluator | None  # None: nothing is scored
    callbacks: Sequence[Callback]
    progress: Progress
    early_stopping: EarlyStopping
    stop: StopRequest = field(default_factory=StopRequest)
    metrics: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # what checkpoints say of the run beside
    passes: int = field(init=False)  # that the run makes of a slice; fewer ranks may have to make more
    spent: Spent = field(default_factory=Spent)  # by this rank, in whole epochs since the job began
    mended_epochs: int = 0  # after which ranks had other weights than rank 0
    arrears: int = field(init=False)  # steps that may be under way when another is
    under_way: deque[tuple[Step, int, Rates]] = field(default_factory=deque)  # with their numbers and rates
    plan: TimePlan | None = None  # of how many epochs, with --time
    checks: DoubleChecks | None = None  # of slices that are done twice
    lost_images: dict[int, int] = field(default_factory=dict)  # by position, the step since when
    lost_in_validation: dict[int, int] = field(default_factory=dict)  # the same, the step after which
    keep: Callable[[dict[str, Any]], None] | None = None  # elastic: gets each commit, on every rank
    # Collective, before each commit: why a device may have computed otherwise since the run began here.
    why_unlike: Callable[[], str | None] | None = None
    # Of a search, collective: gets number (from 1) and score of an epoch, and says whether to end here.
    judge: Callable[[int, float], bool] | None = None

    def __post_init__(self) -> None:
        self.passes = self.stepper.passes.count
        self.arrears = 0 if self.stepper.precision.device.type == "cpu" else 1

    def fit(self) -> None:
        """Train to the end. *Collective.*

        Raises:
            StoppedError: a rank was asked to stop; everything is committed. On all ranks alike.
            NonFiniteError: training diverged, on all ranks alike.
            MemoryShortError: a rank lacks memory, also for half as many images at a time; on all ranks alike.
            FaultyRankError: a rank computes wrongly; the state before that step is committed. On all alike.
            PrunedError: the judge of a search has ended it; everything is committed. On all ranks alike.
        """
        progress = self.progress
        closed_early = progress.batch > 0 and progress.closed_step == progress.step
        reported = progress.epoch + closed_early
        criterion = self.stepper.criterion
        terms = criterion.terms, progress.batch, criterion.taught
        start = RunStart(progress.step, progress.epoch, reported, self.schedule, *terms)
        for callback in self.callbacks:
            callback.on_start(start)
        self.stop.agree_from_here()
        if self.plan is not None:
            self.plan.begin()
        try:
            while not self.done:
                self.train_epoch()
        except StoppedError:
            self.commit(best=False, stopped=True)
            raise
        except FaultyRankError as error:
            self._read_all_but(0)
            self.about["faults"] = [*self.about.get("faults", ()), error.event]
            self.commit(best=False, stopped=True)
            raise
        except MemoryShortError:  # on all ranks, and the steps before are whole
            self._read_all_but(0)
            raise

    @property
    def done(self) -> bool:
        """Whether the last epoch is over, or an earlier end was agreed on."""
        if self._out_of_steps:
            return self.progress.closed_step == self.progress.step
        return self.progress.epoch >= self.epochs or self.early_stopping.stopped

    @property
    def epochs(self) -> int:
        """That the run has, as far as it is known."""
        return self.schedule.epochs

    @property
    def _out_of_steps(self) -> bool:
        return 0 < self.config.max_steps <= self.progress.step

    def train_epoch(self) -> None:
        """Train from the next batch to the end of its epoch, validate, commit. *Collective.*"""
        start, waited = time.perf_counter(), self.comm.wait_s
        epoch, images_before = self.progress.epoch, self.progress.epoch_images
        self.stepper.criterion.begin_epoch(epoch, self.epochs)
        if self.stepper.balance:
            self.stepper.balance.begin_epoch()
        if self.stepper.times:
            self.stepper.times.begin()
        batches, replaced = self.loader.epoch(epoch, self.progress.batch, self.epochs), 0
        # A commit on the last step of an epoch leaves a resumed run its validation only.
        rates = self.schedule.rates(epoch, max(self.progress.batch - 1, 0))
        for window in self.schedule.windows(epoch, self.progress.batch):
            if self._out_of_steps:
                break
            rates = self.schedule.rates(epoch, window.first_batch + window.batches - 1)
            apply_rates(self.stepper.optimizer, rates)
            if window.first_batch + window.batches == self.schedule.batches_per_epoch:
                self._prepare_validation(epoch)
            step, batches = self._made(batches, epoch, window)
            replaced += step.replaced
            if step.redone:
                self.passes = self.stepper.passes.count
                self.config = replace(self.config, micro_batch=self.stepper.passes.images)
                self.note_unlike(f"a rank lacked memory in step {self.progress.step + 1}")
            self._require_images(replaced, epoch, window, step)
            self._advance(window, step)
            self._balance(step)
            self.under_way.append((step, self.progress.step, rates))
            self._read_all_but(self.arrears)
            every = self.config.steps_between_commits
            if every and self.progress.step % every == 0:
                self.commit(best=False)
            if step.stop:
                self._read_all_but(0)
                self.progress.wall_s += time.perf_counter() - start
                raise StoppedError("in an epoch")
        self._read_all_but(0)
        seconds, data_wait = time.perf_counter() - start, self.loader.wait_s
        comm_wait = self.comm.wait_s - waited
        self.progress.wall_s += seconds
        self.spent += Spent(seconds, data_wait, comm_wait)
        self._close_epoch(
            rates=rates,
            images=self.progress.epoch_images - images_before,
            seconds=seconds,
            data_wait_s=data_wait,
            comm_wait_s=comm_wait,
        )

    def _made(self, batches: Iterator[Batch], epoch: int, window: Window) -> tuple[Step, Iterator[Batch]]:
        """A step, on all ranks without the images that any of them has lost. *Collective.*

        Returns:
            The step, and where the next batches come from: those that were made ahead may have such images.
        """
        while True:
            try:
                return self._step(batches, epoch, window), batches
            except LostImagesError:
                self._agree_on_lost_images()
                batches = self.loader.epoch(epoch, window.first_batch, self.epochs)

    def _agree_on_lost_images(self) -> None:
        """What one host cannot read any more, all do without, from the step under way on. *Collective.*"""
        lost, everyones = self.lost_images, set[int]()
        for positions in self.comm.allgather_object([one.position for one in self.loader.lost.values()]):
            everyones.update(positions)
        new, step = sorted(everyones - lost.keys()), self.progress.step + 1
        lost.update(dict.fromkeys(new, step))
        # Where none is new no other could take the place of those that are known: then nothing can be read.
        missing = len(lost) if new else self.sampler.count
        require_images(self.comm, missing, self.sampler.count, self.loader.lost.values(), self.config.data)
        self.loader.leave_out(lost)
        self.note_unlike(f"images were lost while it ran, from step {step} on")
        log.info("lost images: all ranks do without %d from step %d on", len(lost), step)

    def commit(self, best: bool, stopped: bool = False) -> None:
        """Hand everything a resumed run needs to the callbacks; the last time where it is ``stopped``.

        *Collective*: an elastic run may leave from here, and begin anew in another world.
        """
        self._read_all_but(0)
        if self.why_unlike is not None and (why := self.why_unlike()):
            self.note_unlike(why)
        if self.callbacks or self.keep:
            state = {**self.state(), "stopped": stopped}
            for callback in self.callbacks:
                callback.on_commit(state, best)
            if self.keep is not None and not stopped:
                self.keep(state)

    def state(self) -> dict[str, Any]:
        """What ``last.pt`` holds. The tensors are live: copy or write them before the next step."""
        state = training_state(
            model=self.stepper.model.state_dict(),
            ema={"weights": self.ema.model.state_dict(), "updates": self.ema.updates},
            optimizer=self.stepper.optimizer.state_dict(),
            scaler=self.stepper.scaler.state_dict(),
            progress=self.progress,
            early_stopping=self.early_stopping,
            metrics=self.metrics,
            config=to_dict(self.config),
            model_name=self.stepper.model.name,
            variant=self.stepper.model.variant,
            names=self.names,
        )
        drawn_by = self.sampler.weights
        balance = {"image_weights": drawn_by.state_dict()} if drawn_by else {}
        here = {**balance, "passes": self.passes, "exchange": self.stepper.exchange.state_dict()}
        if self.plan is not None:
            here["time_plan"] = self.plan.state_dict()
        lost = {"lost_images": dict(self.lost_images), "lost_in_validation": dict(self.lost_in_validation)}
        return {**state, **self.about, **here, **lost}

    def note_unlike(self, why: str) -> None:
        """Keep why the run's bits are not those of another one with these settings; the first time counts."""
        arithmetic = self.about.get("arithmetic", {})
        self.about["arithmetic"] = {**arithmetic, "unlike": arithmetic.get("unlike") or why}

    def follow(self, balance: Balance | None) -> None:
        """Let the slices of this rank be what its balance says, from the next batch on."""
        self.stepper.balance = balance
        if balance is None:
            return
        slices = self.stepper.slices = balance.slices
        self.loader.share(slices)
        if self.evaluator is not None:
            self.evaluator.share(slices)

    def follow_plan(self) -> None:
        """Let the schedule and the last epochs, which mix no images, be those of ``--time``'s plan."""
        assert self.plan is not None
        self.schedule = replace(self.schedule, epochs=self.plan.epochs)
        if self.config.close_mosaic:
            self.loader.keep_apart(max(self.plan.epochs - self.config.close_mosaic, 0))

    def close(self) -> None:
        """End the data workers and what else runs beside training, also in the middle of a run."""
        for callback in self.callbacks:
            callback.close()
        self.loader.close()
        if self.evaluator is not None:
            self.evaluator.close()

    def _prepare_validation(self, epoch: int) -> None:
        """Its data workers begin beside the last step before it."""
        if self.evaluator is not None and (not self.config.noval or epoch + 1 == self.epochs):
            self.evaluator.prepare()

    def _step(self, batches: Iterator[Batch], epoch: int, window: Window) -> Step:
        config, stepper = self.config, self.stepper
        scales = factors_of(config.seed, epoch, window) if config.multi_scale else [1.0] * window.batches
        if self.checks is not None:
            stepper.check = self.checks.of(self.progress.step + 1, epoch, window, scales, stepper.slices)
        return stepper.step(batches, scales)

    def _balance(self, step: Step) -> None:
        """Where ranks are not as fast as their shares want it, go on with others, on all ranks alike."""
        balance = self.stepper.balance
        if balance is None or not balance.heard(step.seconds):
            return
        report = SharesReport(self.progress.step, balance.shares, balance.seconds)
        log.info("after step %d slices are shared anew: %s", report.step, report.words())
        for callback in self.callbacks:
            callback.on_shares(report)
        self.follow(balance)

    def _require_images(self, replaced: int, epoch: int, window: Window, step: Step) -> None:
        """End the job, on all ranks alike, where too much of the data set has vanished."""
        planned = sum(self.sampler.images_in(epoch, window.first_batch + k) for k in range(window.batches))
        # A sample is missing only where no other image could take its place: then nothing can be read.
        lost = self.sampler.count if step.images < planned else replaced
        if lost > most_lost(self.sampler.count):
            self._read_all_but(0)
        require_images(self.comm, lost, self.sampler.count, self.loader.lost.values(), self.config.data)

    def _advance(self, window: Window, step: Step) -> None:
        self.ema.update(self.stepper.model, step.made)
        progress = self.progress
        progress.step += 1
        progress.batch = window.first_batch + window.batches
        progress.images += step.images
        progress.epoch_images += step.images

    def _read_all_but(self, last: int) -> None:
        """Take in the numbers of steps under way, and tell of them, but for the ``last`` ones."""
        progress = self.progress
        while len(self.under_way) > last:
            step, number, rates = self.under_way.popleft()
            result = step.result()
            progress.skipped += result.skipped
            sums = progress.epoch_losses
            progress.epoch_losses = {
                term: sums.get(term, 0.0) + loss * result.images for term, loss in result.losses.items()
            }
            for callback in self.callbacks:
                callback.on_step(StepReport(number, progress.epoch, rates, result))

    def _close_epoch(self, **measured: Any) -> None:
        """Validate, report and commit what `train_epoch` did."""
        again = self.mended_epochs > 0
        if with_weights_of_rank_0(self.comm, self.stepper, self.ema, again=again):
            self.mended_epochs += 1
            self.note_unlike(f"after step {self.progress.step} ranks had other weights than rank 0")
        progress, epoch = self.progress, self.progress.epoch
        finished = progress.batch >= self.schedule.batches_per_epoch
        evaluation = None if self.config.noval else self._evaluated()  # first, for its time counts
        if finished:
            self._plan(epoch + 1)
        last = self._out_of_steps or (finished and epoch + 1 >= self.epochs)
        if last and self.config.noval:
            evaluation = self._evaluated()
        best = pruned = False
        if evaluation:
            # Rank 0's: what decides about the end must not differ by a last bit between unlike machines.
            self.metrics = self.comm.broadcast_object(metrics_of(evaluation, self.names))
            by_loss = self.config.best_by == "val_loss"
            score = -sum(self.metrics["val_loss"].values()) if by_loss else self.metrics["fitness"]
            best = self.early_stopping.update(epoch, score, self.config.patience)
            pruned = self.judge is not None and self.judge(epoch + 1, score)
        progress.last_losses = {
            term: total / progress.epoch_images for term, total in progress.epoch_losses.items()
        }
        if finished:
            if evaluation and self.sampler.weights:  # not within an epoch, whose draws are made
                self.sampler.weights.learn(self.metrics["per_class"])
            progress.epoch, progress.batch = epoch + 1, 0
            progress.epoch_losses, progress.epoch_images = {}, 0
        report = EpochReport(
            epoch=epoch, losses=progress.last_losses, evaluation=evaluation, best=best, **measured
        )
        begun = time.perf_counter()
        for callback in self.callbacks:
            callback.on_epoch(report)
        progress.closed_step = progress.step
        self.commit(best)
        self.spent += Spent(commit=time.perf_counter() - begun)
        if pruned and not self.done:
            raise PrunedError(f"after epoch {epoch + 1}")

    def _evaluated(self) -> Evaluation | None:
        if self.evaluator is None:
            return None
        begun = time.perf_counter()
        evaluation = self.evaluator.run(self.ema.model)
        self._note_lost_in_validation(self.evaluator.left_out)
        self.spent += Spent(validation=time.perf_counter() - begun)
        return evaluation

    def _note_lost_in_validation(self, left_out: Collection[int]) -> None:
        """Keep since when what any rank has lost is left out."""
        known, step = self.lost_in_validation, self.progress.step
        if new := sorted(set(left_out) - known.keys()):
            known.update(dict.fromkeys(new, step))
            self.note_unlike(f"validation images were lost while it ran, after step {step}")
            log.info("lost images: all ranks validate without %d from step %d on", len(known), step)

    def _plan(self, over: int) -> None:
        """With ``--time``, decide anew how many epochs there are, after so many. *Collective.*"""
        if self.plan is None or not self.plan.decide(over, self.comm):
            return
        self.follow_plan()
        for callback in self.callbacks:
            callback.on_plan(PlanReport(over, self.schedule))
