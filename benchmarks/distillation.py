"""What a teacher brings: yolov5n on the built-in digits with a yolov5s to teach it and without, by seed.

    python benchmarks/distillation.py [--table]

Claim: none but the table itself. A yolov5s is trained first, then three students each way, on 128 px in a
batch of 16, with the demo's hyperparameters and the last epoch counting. A thread, one training at a time:
about 4 minutes for the teacher and 2 to 3 for a student. Start the script again to go on: what has ended is
kept, and what was broken off is resumed.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from common import described, interval, machine, paired, parsed, parser, publish, runs, train

from horovod_yolo.data.digits import make_digits

TEACHER, STUDENT = "yolov5s", "yolov5n"
EPOCHS = {TEACHER: 12, STUDENT: 8}
SEEDS = (0, 1, 2)
SEED_OF_TEACHER = 100
SHARED = (
    "--img 128 --batch 16 --workers 0 --cache ram --device cpu --noval --noplots --resume auto "
    "--optimizer AdamW --cos-lr --hyp horovod_yolo/config/hyp.digits.anchor_based.yaml"
)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--folder", type=Path, help="keeps what is done")
    p.add_argument("--table", action="store_true", help="train nothing: publish what is there")
    args = parsed(p)
    folder = (args.folder or runs("distillation")).resolve()
    epochs, seeds = (dict.fromkeys(EPOCHS, 1), SEEDS[:1]) if args.quick else (EPOCHS, SEEDS)
    if not args.table:
        carry_out(folder, epochs, seeds)
    found = {
        "teacher": score(folder / "teacher"),
        "without": {seed: score(folder / f"without-{seed}") for seed in seeds},
        "with": {seed: score(folder / f"with-{seed}") for seed in seeds},
    }
    facts = machine()
    publish("distillation", {"machine": facts, "epochs": epochs, **found}, table_of(found, epochs, facts))


def carry_out(folder: Path, epochs: dict[str, int], seeds: tuple[int, ...]) -> None:
    """Train what has not ended, both ways of a seed before the next seed."""
    data = folder / "data" / "digits" / "data.yaml"
    if not data.exists():
        data.parent.parent.mkdir(parents=True, exist_ok=True)
        make_digits(data.parent)
    jobs = {"teacher": (TEACHER, SEED_OF_TEACHER, "")}
    teacher = folder / "teacher" / "weights" / "last.pt"
    for seed in seeds:
        jobs |= {
            f"without-{seed}": (STUDENT, seed, ""),
            f"with-{seed}": (STUDENT, seed, f"--teacher {teacher}"),
        }
    for name, (cfg, seed, more) in jobs.items():
        if not (folder / name / "results.json").exists():
            words = f"{SHARED} --cfg {cfg} --epochs {epochs[cfg]} --seed {seed} {more}"
            place = ["--data", str(data), "--project", str(folder), "--name", name]
            train([*words.split(), *place], 1, folder / f"{name}.log", OMP_NUM_THREADS="1")


def score(run: Path) -> dict[str, float] | None:
    """What validation found of a training that has ended."""
    results = run / "results.json"
    if not results.exists():
        return None
    metrics = json.loads(results.read_text())["metrics"]
    return {name: metrics[name] for name in ("mAP50-95", "mAP50")}


def table_of(found: dict[str, Any], epochs: dict[str, int], facts: dict[str, Any]) -> str:
    lines = [
        f"| mAP50-95 (mAP50) | {' | '.join(f'seed {seed}' for seed in found['with'])} | mean |",
        f"|---|{'---|' * (len(found['with']) + 1)}",
    ]
    for way in ("without", "with"):
        ended = [one for one in found[way].values() if one]
        cells = [shown(one) if one else "not run" for one in found[way].values()]
        mean = f"{statistics.fmean(one['mAP50-95'] for one in ended):.3f}" if ended else ""
        lines.append(f"| {STUDENT} {way} a teacher | {' | '.join(cells)} | {mean} |")
    if found["teacher"]:
        empty = " |" * len(found["with"])
        lines.append(f"| the teacher, {TEACHER} | {shown(found['teacher'])} |{empty}")
    long = f"Students of {epochs[STUDENT]} epochs, a teacher of {epochs[TEACHER]}"
    about = f"{long}; 480 images at 128 px, last epoch."
    return "\n".join([*lines, "", f"{about} {said(found)} {described(facts)}"])


def shown(one: dict[str, float]) -> str:
    return f"{one['mAP50-95']:.3f} ({one['mAP50']:.3f})"


def said(found: dict[str, Any]) -> str:
    """What came out, in words."""
    pairs = [(one, found["without"][seed]) for seed, one in found["with"].items()]
    gains = [one["mAP50-95"] - other["mAP50-95"] for one, other in pairs if one and other]
    if len(gains) < 2:
        return "Too few pairs to say anything."
    centre, half = paired(gains)
    clear = "more" if centre - half > 0 else "less" if centre + half < 0 else ""
    verdict = f"{clear} with the teacher" if clear else "no gain that these seeds would show"
    return (
        f"Paired by seed {centre:+.3f} mAP50-95, {interval(centre, half)} "
        f"by the t distribution ({len(gains)} pairs): {verdict}."
    )


if __name__ == "__main__":
    main()
