"""``horovod-yolo report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser
from horovod_yolo.core.errors import UserError


def report_parser() -> Parser:
    """Its flags."""
    p = Parser(prog="horovod-yolo report", allow_abbrev=False)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs that have ended")
    p.add_argument(
        "--out", type=Path, default=Path("comparison.html"), metavar="FILE", help="the page of several runs"
    )
    return p


def report_main(argv: Sequence[str]) -> int:
    """Several runs side by side on one page, or one run's page anew."""

    def run() -> None:
        args = report_parser().parse_strictly(argv)
        from horovod_yolo.report.comparison import write_comparison
        from horovod_yolo.report.finished import FinishedRun
        from horovod_yolo.report.html import write_report

        found = [FinishedRun.read(folder) for folder in args.runs]
        one = len(found) == 1
        out = found[0].folder / "report.html" if one else args.out
        try:
            if one:
                write_report(found[0].folder, found[0].results, found[0].rows)
            else:
                write_comparison(found, out)
        except OSError as error:
            fix = "give its folder space and rights" if one else "name another --out"
            raise UserError(f"cannot be written ({error.strerror})", where=out, fix=fix) from None
        print(out)

    return guarded(run)
