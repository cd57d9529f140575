"""``horovod-yolo doctor``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from horovod_yolo.assembly.ending import DONE, MISTAKE
from horovod_yolo.cli.one_process import guarded
from horovod_yolo.config.load import Parser


def doctor_main(argv: Sequence[str]) -> int:
    """Say what keeps hosts from training together; 2 where something does."""

    def run() -> int:
        args = doctor_parser().parse_strictly(argv)
        from horovod_yolo.data import named
        from horovod_yolo.doctor.collect import Questions, default_folders
        from horovod_yolo.doctor.examine import examine
        from horovod_yolo.launch import command, network, plan

        given, notes = network.merged(command.given_hosts(args))
        folders = default_folders(args.project, args.cache_dir)
        if args.data and named.is_built_in(args.data):
            named.make(args.data)  # before the hosts do, which may share this folder
        questions = Questions(args.data or "", folders, args.timeout)
        interface = plan.checked_interface(args.interface)
        if args.torch and len(given) > 1:
            notes.append("agents meet at the host of `launch --torch`: losing it ends the job")
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            found = examine(given, questions, interface, status.update, over_torch=args.torch)
        if args.json:
            print(json.dumps(found.as_json(), indent=2))
        else:
            from horovod_yolo.doctor.table import show

            show(found, Console())
        return DONE if found.healthy else MISTAKE

    return guarded(run)


def doctor_parser() -> Parser:
    """All flags."""
    p = Parser(prog="horovod-yolo doctor", allow_abbrev=False)
    hosts = p.add_mutually_exclusive_group()
    hosts.add_argument(
        "--hosts", "-H", default="localhost", metavar="LIST", help="host1:4,host2:4; default: this host only"
    )
    hosts.add_argument("--hostfile", type=Path, metavar="FILE", help="a host a line: see hostfiles/README.md")
    p.add_argument("--data", metavar="FILE", help="data.yaml: is the data set on all hosts, and the same")
    p.add_argument("--project", default="runs/train", metavar="DIR", help="folder of the run folders")
    p.add_argument("--cache-dir", dest="cache_dir", metavar="DIR", help="folder of the index and image cache")
    p.add_argument("--interface", metavar="IF", help="network interface of the job that is tried")
    p.add_argument("--torch", action="store_true", help="for jobs over torch, which need no Horovod")
    p.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for each host's answer")
    p.add_argument("--json", action="store_true", help="everything that was found, for scripts")
    return p
