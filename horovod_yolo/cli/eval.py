"""``horovod-yolo eval``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser


def eval_main(argv: Sequence[str]) -> int:
    """Score a COCO-format results file; needs neither a model nor ranks."""

    def run() -> None:
        p = Parser(prog="horovod-yolo eval", allow_abbrev=False)
        p.add_argument("--gt", required=True, type=Path, help="COCO annotations")
        p.add_argument(
            "--dt", required=True, type=Path, help="COCO results: image_id, category_id, bbox, score"
        )
        p.add_argument("--json", action="store_true", help="print JSON instead of the twelve lines")
        args = p.parse_strictly(argv)
        from horovod_yolo.metrics.coco_results import evaluate_files, format_table, to_json

        found = evaluate_files(args.gt, args.dt)
        if args.json:
            print(json.dumps(to_json(found.summary, [c.name for c in found.categories]), indent=2))
        else:
            print(format_table(found.summary))

    return guarded(run)
