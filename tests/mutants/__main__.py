"""Make small mistakes in the code, one at a time, and see whether its tests see them: ``make mutants``.

    python -m tests.mutants                              # all of it: hours of CPU
    python -m tests.mutants --sample 30 losses sampler   # 30 of each, always the same ones
    python -m tests.mutants --by-hand                    # the mistakes of by_hand.py only

A survivor is printed with its file, line and change. It is a hole in the tests, or changes nothing: then
it goes into equivalent.py, with the reason.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2  # noqa: F401  imported once, not in each of the forked processes
import numpy as np  # noqa: F401
import torch  # noqa: F401

from tests.mutants.by_hand import BY_HAND, ByHand
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.operators import Mutant, compiled, mutants_of
from tests.mutants.trial import KILLED, SURVIVED, TIMED_OUT, Reach, Trial, reach_of, run_trials

ROOT = Path(__file__).resolve().parents[2]

# What is changed, and the tests that must see it.
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "losses": (("horovod_yolo/losses/*.py",), ("tests/unit/losses",)),
    "metrics": (("horovod_yolo/metrics/*.py",), ("tests/unit/metrics",)),
    "sampler": (("horovod_yolo/data/sampler.py",), ("tests/unit/data/test_sampler.py",)),
    "schedule": (("horovod_yolo/training/schedule.py",), ("tests/unit/training/test_schedule.py",)),
    "step": (
        ("horovod_yolo/training/step.py",),
        ("tests/unit/training", "tests/unit/families/test_toy_family.py"),
    ),
    "store": (("horovod_yolo/checkpoint/store.py",), ("tests/unit/checkpoint",)),
}
EQUIVALENTS = "equivalent"


def main() -> int:
    """Run it; 1 where a mistake survives."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)}; by default all")
    parser.add_argument("--sample", type=int, default=0, help="mistakes of each target; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at a time")
    parser.add_argument("--by-hand", action="store_true", help="only the mistakes of by_hand.py")
    options = parser.parse_args()
    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    os.chdir(ROOT)
    rows = [] if options.targets else [by_hand(options.jobs)]
    for name in [] if options.by_hand else options.targets or TARGETS:
        rows.append(target(name, options.sample, options.seed, options.jobs))
    print_table(rows)
    return int(any(counts[SURVIVED] for _, _, counts in rows))


Row = tuple[str, int, Counter[str]]  # name, how many mistakes there are, outcomes of those that were made


def target(name: str, sample: int, seed: int, jobs: int) -> Row:
    """Try the mistakes of one target."""
    globs, tests = TARGETS[name]
    paths = sorted(path for glob in globs for path in ROOT.glob(glob))
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    everything = [mutant for path, source in sources.items() for mutant in mutants_of(path, source)]
    chosen = random.Random(seed).sample(everything, min(sample, len(everything))) if sample else everything
    reach = reach_of(tests, paths)
    outcomes: Counter[str] = Counter()
    trials = []
    for mutant in chosen:
        if (mutant.path, mutant.function, mutant.before, mutant.after) in EQUIVALENT:
            outcomes[EQUIVALENTS] += 1
        else:
            trials.append(trial_of(mutant, sources[mutant.path], reach))
    for mutant, outcome in run_trials(trials, jobs):
        outcomes[outcome] += 1
        if outcome == SURVIVED:
            print(mutant, flush=True)
    return name, len(everything), outcomes


def trial_of(mutant: Mutant, source: str, reach: Reach) -> Trial:
    """The tests that come by the mistake."""
    tests = reach.tests_for(str(ROOT / mutant.path), mutant.line, mutant.last_line)
    seconds = sum(reach.seconds[test] for test in tests)
    return Trial(mutant, module_of(mutant.path), lambda: compiled(mutant, source), tests, seconds)


def module_of(path: str) -> str:
    """``horovod_yolo/core/boxes.py`` -> ``horovod_yolo.core.boxes``."""
    return ".".join(Path(path).with_suffix("").parts)


def by_hand(jobs: int) -> Row:
    """Try the mistakes of by_hand.py, each with all of its tests."""
    trials = []
    for mistake in BY_HAND:
        source = (ROOT / mistake.path).read_text(encoding="utf-8")
        if source.count(mistake.before) != 1:
            raise SystemExit(
                f"by_hand.py: {mistake.path} has {mistake.before!r} {source.count(mistake.before)} times"
            )
        trials.append(
            Trial(mistake, module_of(mistake.path), compiler(mistake, source), [mistake.tests], 60.0)
        )
    outcomes: Counter[str] = Counter()
    for mistake, outcome in run_trials(trials, jobs):
        outcomes[outcome] += 1
        if outcome == SURVIVED:
            print(f"{mistake.path}: {mistake.before} -> {mistake.after}", flush=True)
    return "by hand", len(BY_HAND), outcomes


def compiler(mistake: ByHand, source: str):  # type: ignore[no-untyped-def]
    """Makes the code with the mistake."""
    changed = source.replace(mistake.before, mistake.after)
    return lambda: compile(changed, str(ROOT / mistake.path), "exec")


def print_table(rows: Sequence[Row]) -> None:
    """The score: of the mistakes that change something, the share that was seen."""
    print("\n| | mistakes | tried | seen | of them by time | change nothing | not seen | score |")
    print("|---|---|---|---|---|---|---|---|")
    for name, total, counts in rows:
        tried = sum(counts.values())
        seen = counts[KILLED] + counts[TIMED_OUT]
        score = seen / max(tried - counts[EQUIVALENTS], 1)
        cells = (name, total, tried, seen, counts[TIMED_OUT], counts[EQUIVALENTS], counts[SURVIVED])
        print("| " + " | ".join(map(str, cells)) + f" | {score:.1%} |")


if __name__ == "__main__":
    sys.exit(main())
