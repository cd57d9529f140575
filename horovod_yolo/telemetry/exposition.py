"""A run's numbers for Prometheus, in its text format.

Names follow its rules: base units, ``_total`` for what only grows, ``_info`` for what is known by labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from horovod_yolo.telemetry.live import Now

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "horovod_yolo_"
Sample = tuple[Mapping[str, str], float]  # labels and a value


class _Metric(NamedTuple):
    kind: str
    name: str
    help: str
    samples: Callable[[Now], Iterable[Sample]]


def _one(of: Callable[[Now], float | None]) -> Callable[[Now], Iterable[Sample]]:
    """A value without labels, where there is one yet."""

    def samples(now: Now) -> Iterator[Sample]:
        value = of(now)
        if value is not None:
            yield {}, float(value)

    return samples


def _ranks(of: Callable[[Now, int], float]) -> Callable[[Now], Iterable[Sample]]:
    """A value of each rank."""
    return lambda now: [
        ({"rank": str(rank), "host": now.facts["hosts"][rank]}, of(now, rank))
        for rank in range(len(now.ranks))
    ]


def _losses(now: Now) -> Iterable[Sample]:
    if now.last is None:
        return []
    return [({"term": term}, value) for term, value in now.last.result.losses.items()]


def _validation_losses(now: Now) -> Iterable[Sample]:
    if now.validated is None or now.validated.evaluation is None:
        return []
    return [({"term": term}, value) for term, value in now.validated.evaluation.losses.items()]


def _scores(now: Now) -> Iterable[Sample]:
    return [({"metric": name}, value) for name, value in now.scores.items()]


def _info(now: Now) -> Iterable[Sample]:
    return [({name: str(now.facts[name]) for name in ("run", "model", "version")}, 1.0)]


_METRICS = (
    _Metric("gauge", "run_info", "The run: its folder, model and version of this package.", _info),
    _Metric("gauge", "ranks", "Ranks that train together.", _one(lambda now: now.facts["ranks"])),
    _Metric(
        "gauge", "start_time_seconds", "When this job began, since 1970.", _one(lambda now: now.started_at)
    ),
    _Metric("counter", "steps_total", "Optimizer steps of the run.", _one(lambda now: now.step)),
    _Metric("counter", "epochs_total", "Epochs of the run that are over.", _one(lambda now: now.epoch)),
    _Metric("gauge", "epochs_planned", "Epochs that the run is to have.", _one(lambda now: now.epochs)),
    _Metric(
        "gauge",
        "epoch_progress_ratio",
        "Share of the epoch's batches that are done.",
        _one(lambda now: now.batches[0] / max(now.batches[1], 1)),
    ),
    _Metric("counter", "images_total", "Images that this job has trained on.", _one(lambda now: now.images)),
    _Metric(
        "gauge",
        "images_per_second",
        "Images a second in the last steps, all ranks together.",
        _one(lambda now: now.images_per_s),
    ),
    _Metric(
        "counter",
        "skipped_steps_total",
        "Steps of this job that were skipped, as their gradients were not finite.",
        _one(lambda now: now.skipped),
    ),
    _Metric(
        "counter",
        "replaced_images_total",
        "Images of this job in whose place another one was trained on, as they could not be read.",
        _one(lambda now: now.replaced),
    ),
    _Metric("gauge", "loss", "Loss terms of the last step.", _losses),
    _Metric(
        "gauge",
        "learning_rate",
        "Learning rate of the last step.",
        _one(lambda now: now.last.rates.lr if now.last else None),
    ),
    _Metric(
        "gauge",
        "gradient_norm",
        "Norm of the last step's gradient before it was clipped.",
        _one(lambda now: now.last.result.grad_norm if now.last else None),
    ),
    _Metric("gauge", "validation_loss", "Loss terms of the last validation.", _validation_losses),
    _Metric("gauge", "validation_score", "Scores of the last validation, from 0 to 1.", _scores),
    _Metric(
        "gauge",
        "last_checkpoint_timestamp_seconds",
        "When this job last wrote last.pt, since 1970.",
        _one(lambda now: now.checkpoint_at),
    ),
    _Metric(
        "counter",
        "rank_images_total",
        "Images that a rank has trained on.",
        _ranks(lambda now, rank: now.ranks[rank].images),
    ),
    _Metric(
        "gauge",
        "rank_images_per_second",
        "Images a second of a rank in the last steps.",
        _ranks(lambda now, rank: now.ranks[rank].images_per_s),
    ),
    _Metric(
        "counter",
        "rank_training_seconds_total",
        "Seconds of a rank in steps, with all waits.",
        _ranks(lambda now, rank: now.ranks[rank].seconds),
    ),
    _Metric(
        "counter",
        "rank_data_wait_seconds_total",
        "Seconds that a rank has waited for its data.",
        _ranks(lambda now, rank: now.ranks[rank].data_wait_s),
    ),
    _Metric(
        "counter",
        "rank_peer_wait_seconds_total",
        "Seconds that a rank has waited for other ranks.",
        _ranks(lambda now, rank: now.ranks[rank].rank_wait_s),
    ),
)


def exposition(now: Now) -> str:
    """All metrics of a run, as Prometheus reads them."""
    lines = []
    for kind, name, words, samples in _METRICS:
        full = _PREFIX + name
        lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}"]
        lines += [f"{full}{_labels(labels)} {_number(float(value))}" for labels, value in samples(now)]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _labels(labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
