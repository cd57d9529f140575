"""``horovod-yolo data check|split|convert|stats``: what looks at a data set, and what makes another of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from horovod_yolo.assembly.job import on_ranks
from horovod_yolo.config.load import Parser, add_label_flags
from horovod_yolo.core.errors import UserError

if TYPE_CHECKING:
    from horovod_yolo.assembly.check import Checked

_ROWS = {
    "images": "images",
    "images left out": "images_left_out",
    "images without boxes": "images_without_boxes",
    "images without label file": "images_without_label_file",
    "boxes": "boxes",
    "crowds": "crowds",
}


def check_main(argv: Sequence[str]) -> int:
    """Say what a run would say of a data set; 2 where it would end."""

    def parse() -> Any:
        from horovod_yolo.assembly.check import CheckOptions

        p = _parser("check")
        p.add_argument("given", nargs="?", default=None, metavar="DATA", help="data.yaml")
        p.add_argument("--data", metavar="DATA", help="the same")
        p.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all of it there too")
        flags = vars(p.parse_strictly(argv))
        given, file = flags.pop("given"), flags.pop("json")
        data = flags.pop("data", given)
        if data is None or given not in (None, data):
            raise UserError("one data set is to be named", fix="horovod-yolo data check data.yaml")
        return CheckOptions(data=data, **flags), file

    def job(comm: Any, parsed: Any) -> None:
        from horovod_yolo.assembly.check import check_data

        options, file = parsed

        def show(checked: Checked) -> None:
            _show(checked)
            if file is not None:
                _write_json(file, checked.as_json())

        splits = check_data(options, comm, show)
        if comm.rank == 0:
            print(f"{options.data}: a run can train on it ({', '.join(splits)})", flush=True)

    return on_ranks(parse, job)


def convert_main(argv: Sequence[str]) -> int:
    """Write a data set in another format, on as many ranks as were launched."""

    def parse() -> Any:
        from horovod_yolo.assembly.data_tools import ConvertOptions
        from horovod_yolo.data.conversion import FORMATS

        p = _parser("convert")
        p.add_argument("data", metavar="DATA", help="data.yaml")
        p.add_argument(
            "--to", required=True, choices=FORMATS, help="list: image x1,y1,x2,y2,class ... a line"
        )
        _add_out(p)
        return ConvertOptions(**vars(p.parse_strictly(argv)))

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.data_tools import convert_data

        images = convert_data(options, comm)
        if comm.rank == 0:
            print(f"{images} images; train with --data {options.out / 'data.yaml'}", flush=True)

    return on_ranks(parse, job)


def split_main(argv: Sequence[str]) -> int:
    """Divide the images of a data set anew into train, val and maybe test."""

    def parse() -> Any:
        from horovod_yolo.assembly.data_tools import SplitOptions

        p = _parser("split")
        p.add_argument("data", metavar="DATA", help="data.yaml; the images of all its splits are divided")
        shares = "shares of train, val and maybe test; default: 0.8 0.2"
        p.add_argument("--ratio", type=float, nargs="+", metavar="SHARE", help=shares)
        p.add_argument("--seed", type=int, help="another one, another split; default: 0")
        _add_out(p)
        flags = vars(p.parse_strictly(argv))
        return SplitOptions(**{**flags, **({"ratio": tuple(flags["ratio"])} if "ratio" in flags else {})})

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.data_tools import split_data

        sizes = split_data(options, comm)
        if comm.rank == 0:
            shown = ", ".join(f"{name} {count}" for name, count in sizes.items())
            print(f"{shown} images; train with --data {options.out / 'data.yaml'}", flush=True)

    return on_ranks(parse, job)


def stats_main(argv: Sequence[str]) -> int:
    """Write a page of label statistics and sample pictures."""

    def parse() -> Any:
        from horovod_yolo.assembly.statistics import StatsOptions

        p = _parser("stats")
        p.add_argument("data", metavar="DATA", help="data.yaml")
        p.add_argument("--out", type=Path, metavar="FILE", help="the page; default: data_stats.html")
        p.add_argument("--pictures", type=int, metavar="N", help="that are shown; default: 12")
        p.add_argument("--seed", type=int, help="another one, other pictures; default: 0")
        return StatsOptions(**vars(p.parse_strictly(argv)))

    def job(comm: Any, options: Any) -> None:
        from horovod_yolo.assembly.statistics import data_stats

        page = data_stats(options, comm)
        if comm.rank == 0:
            print(f"{page}", flush=True)

    return on_ranks(parse, job)


def _parser(command: str) -> Parser:
    p = Parser(prog=f"horovod-yolo data {command}", allow_abbrev=False, argument_default=argparse.SUPPRESS)
    add_label_flags(p)
    p.add_argument("--cache-dir", dest="cache_dir", help="folder of the cached annotations")
    return p


def _add_out(p: Parser) -> None:
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="empty or new folder")
    p.add_argument("--copy", action="store_true", help="copy the images there, instead of links or paths")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(what, where=path, fix="give another file to --json") from error


def _show(checked: Checked) -> None:
    """A table with a column a split: first how much there is, then the boxes of each class."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = {split: of.as_json(checked.names) for split, of in checked.found.items()}
    if not found:
        return
    table = Table("", box=box.SIMPLE_HEAD)
    for split in found:
        table.add_column(split, justify="right")
    for title, key in _ROWS.items():
        table.add_row(title, *(f"{of[key]:,}" for of in found.values()))
    table.add_row("problems", *(f"{len(of['problems']):,}" for of in found.values()))
    ends = ["yes" if split in checked.mistakes else "no" for split in found]
    table.add_row("would end a run", *ends, end_section=True)
    for i, name in enumerate(checked.names):
        boxes = (f"{of['classes'][i]['boxes']:,}" for of in found.values())
        table.add_row(Text(f"boxes of {name}"), *boxes)
    Console().print(table)
