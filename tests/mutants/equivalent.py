"""Mistakes that change nothing anybody could see, each with the reason.

The key is the file, the function and the change; a mistake that stands twice in a function counts twice.
"""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (
        "horovod_yolo/training/schedule.py",
        "Schedule.rates",
        "number > self.warmup_batches",
        "number >= self.warmup_batches",
    ): "at the last batch of the warm-up both formulas give the same rates, to rounding",
    (
        "horovod_yolo/data/sampler.py",
        "StepSampler.global_indices",
        "0",
        "1",
    ): "without shuffling the order is the same for every epoch",
}
