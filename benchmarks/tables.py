"""All tables, each made by its script, one after the other: ``make bench``, and ``make bench-quick``.

    PYTHONPATH=. python benchmarks/tables.py [--quick] [TABLE ...]

Takes some seven hours on two cores that do nothing else, with ``--quick`` minutes: that says whether the
scripts run, and touches no page. One that fails, or lacks what it needs, does not keep the others; it is
named in the end, and the exit code is 1. What the scripts print is kept in runs/bench.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time

from common import ROOT, environment, finished, parsed, parser, results_file, runs

TABLES = {  # and who makes them
    "world-size-invariance": "world_size.py",
    "bccd": "bccd.py",
    "quality": "quality.py --minutes 90",
    "finetune": "finetune.py",
    "tune": "tune.py",
    "exported": "exported.py",
    "rectangles": "rectangles.py",
    "digits-demo": "demo.py",
    "digits": "digits.py",
    "step": "step.py --one",
    "step-syncs": "step.py --syncs",
    "digests": "digests.py",
    "step-floor": "step.py --floor --one",
    "data": "data.py",
    "data-cache": "data.py --cache",
    "staging-reading": "staging.py --only reading",
    "staging-training": "staging.py --only training",
    "engines": "engines.py --only host",
    "engines-links": "engines.py --only links",
    "sync-bn": "sync_bn.py",
    "slices": "slices.py",
    "slices-adamw": "slices_adamw.py",
    "distillation": "distillation.py",
    "loggers": "loggers.py",
    "slices-accuracy": "slices_accuracy.py --only digits",
    "comm": "comm.py",
    "scaling-host": "scaling.py --only host",
    "scaling-links": "scaling.py --only links",
    "plan-links": "plan.py --only links",
    "plan-published": "plan.py --only published",
    "scaling-curves": "plan.py --only curves",
    "evaluate": "evaluate.py",
    "nms": "nms.py",
    "validate": "validate.py",
    "startup": "startup.py",
    "startup-process": "startup.py --process",
    "memory": "memory.py",
    "annotations": "startup.py --index",
    "faults": "faults.py",
    "bitwise-faults": "bitwise_faults.py",
    "balance": "balance.py",
    "promises": "promises.py",
    "first-ten-minutes": "first_ten_minutes.py",
}
LIMIT_S = 2 * 3600  # of a script; nothing that has gone astray keeps the others


def main() -> None:
    p = parser(__doc__)
    p.add_argument("tables", nargs="*", metavar="TABLE", help=f"one of: {', '.join(TABLES)}")
    args = parsed(p)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    for name in args.tables:
        if name not in TABLES:
            sys.exit(f"error: no table {name!r}; one of: {', '.join(TABLES)}")
    missed = [name for name in args.tables or TABLES if not made(name, args.quick)]
    if missed:
        sys.exit(f"error: not made: {', '.join(missed)}; see {runs('bench')}")


def made(name: str, quick: bool) -> bool:
    """Run the script of a table; whether the table is there, and new."""
    script, *flags = TABLES[name].split()
    command = [sys.executable, str(ROOT / "benchmarks" / script), *flags, *(["--quick"] if quick else [])]
    print("$", shlex.join(command), flush=True)
    log, begun = runs("bench") / f"{name}.log", time.time()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        code = finished(command, out.fileno(), environment(ROOT), LIMIT_S, cwd=ROOT)
    if code is None:
        code = -signal.SIGKILL
    file = results_file(name)
    found = code == 0 and file.exists() and file.stat().st_mtime >= begun
    said = log.read_text(errors="replace").strip().splitlines()
    print(
        f"{name}: {'made' if found else f'NOT made (exit {code})'} in {time.time() - begun:.0f} s", flush=True
    )
    if not found and said:
        print(f"  {said[-1]}", flush=True)
    return found


if __name__ == "__main__":
    main()
