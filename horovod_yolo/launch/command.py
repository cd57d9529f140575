"""The command line of ``horovod-yolo launch``: its flags, and the plan that follows from them."""

from __future__ import annotations

import argparse
import math
import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from horovod_yolo.config.load import Parser, train_parser
from horovod_yolo.config.schema import TrainConfig
from horovod_yolo.config.words import with_words
from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import elastic, hostfile, network, plan, transport
from horovod_yolo.launch.hostfile import Host
from horovod_yolo.process.environment import check_numbers


def parser() -> Parser:
    """The flags before ``--``."""
    p = Parser(
        prog="horovod-yolo launch",
        allow_abbrev=False,
        usage="%(prog)s (--hosts LIST | --hostfile FILE) [flags] -- "
        "{train,val,predict,replay,bench,SCRIPT.py} ...",
    )
    hosts = p.add_mutually_exclusive_group(required=True)
    hosts.add_argument("--hosts", "-H", metavar="LIST", help="host1:4,host2:4")
    hosts.add_argument("--hostfile", type=Path, metavar="FILE", help="a host a line: see hostfiles/README.md")
    p.add_argument("--np", "-np", dest="ranks", type=int, metavar="N", help="ranks; default: all slots")
    how = p.add_mutually_exclusive_group()
    for launcher, flag in transport.FLAGS.items():
        how.add_argument(flag, dest="launcher", action="store_const", const=launcher)
    p.add_argument(
        "--elastic", action="store_true", help="ranks may come and go, -np are there to begin with"
    )
    p.add_argument("--min-np", dest="least", type=int, metavar="N", help="elastic: below it wait; default: 1")
    p.add_argument(
        "--max-np", dest="most", type=int, metavar="N", help="elastic: ranks at most; default: all"
    )
    p.add_argument(
        "--max-restarts",
        dest="restarts",
        type=int,
        default=0,
        metavar="N",
        help="torch: start all ranks anew when one is lost, so many times at most",
    )
    p.add_argument("--interface", metavar="IF", help="network interface; default: that of the route")
    p.add_argument(
        "-x",
        dest="also",
        action="append",
        default=[],
        metavar="NAME",
        help="mpirun: pass this variable on too",
    )
    p.add_argument("--dry-run", dest="dry_run", action="store_true", help="print the command and stop")
    return p


def split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What stands before and after the first ``--``."""
    at = list(argv).index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def given_hosts(args: argparse.Namespace) -> tuple[Host, ...]:
    """What --hostfile or --hosts names."""
    return hostfile.read_hostfile(args.hostfile) if args.hostfile else hostfile.parse_hosts(args.hosts)


def make_plan(args: argparse.Namespace, words: Sequence[str]) -> tuple[plan.LaunchPlan, list[str]]:
    """The plan, and notes for the user. A dry run may be for another host: there a check is a note.

    Args:
        args: of `parser`.
        words: what the ranks run.

    Raises:
        UserError: a mistake in either.
    """
    named = given_hosts(args)
    given, notes = network.merged(named)
    args.launcher, unusual = transport.chosen(args.launcher, elastic=args.elastic)
    notes += [unusual] if unusual else []
    ranks, words = _elastic(args, given, words)
    hosts = plan.fit(given, args.ranks) if ranks is None else given
    program = plan.program(words)
    if ranks is not None and len(hosts) == 1:
        notes.append(f"{hosts[0].name} is the only host: when a rank fails, nothing is left to go on with")
    interface, why = args.interface, ""
    if interface is None:
        interface, why = network.find_interface(hosts, needed=ranks is not None)
    try:
        network.check_own_name(hosts, bound=interface is not None and plan.keeps_to_interface(args.launcher))
    except UserError as error:
        if not args.dry_run:
            raise
        notes.append(str(error))
    told = hostfile.weights(named)
    environ = {**plan.environment(os.environ), **told}
    check_numbers(environ)
    notes += _environment_notes(hosts, told)
    made = plan.LaunchPlan(
        launcher=args.launcher,
        tool=plan.tool(args.launcher),
        hosts=hosts,
        program=program,
        interface=plan.checked_interface(interface),
        names=plan.passed_on(environ, args.also),
        prefix=plan.own_mpi(hosts),
        as_root=os.geteuid() == 0,
        folder=plan.spelled_out(Path.cwd()),
        elastic=ranks,
        restarts=_restarts(args),
        told=told,
    )
    plan.check_size(made, environ)
    away = not all(network.is_here(host.name) for host in hosts)
    plan.check_shell(made, _login_shell(), away)
    plan.check_remote_shell(made, environ, away)
    return made, [*notes, *([why] if why else [])]


def _restarts(args: argparse.Namespace) -> int:
    restarts: int = args.restarts
    if restarts < 0:
        raise UserError(f"{restarts} is no number of restarts", where="--max-restarts")
    if restarts and args.launcher != "torch":
        raise UserError("goes with --torch only", where="--max-restarts", fix="horovodrun has --elastic")
    return restarts


def _login_shell() -> str:
    """Of this account; empty where it is not known, as in a container with a number for a user."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_shell
    except KeyError:
        return ""


def _environment_notes(hosts: Sequence[Host], told: Mapping[str, str]) -> list[str]:
    """What ranks are ``told`` by variables, and what of this host's environment does not hold for all."""
    notes = [f"the ranks get {name}={value}" for name, value in told.items()]
    visible = os.environ.get(plan.VISIBLE_GPUS)
    if visible is not None and not all(network.is_here(host.name) for host in hosts):
        notes.append(
            f"{plan.VISIBLE_GPUS}={visible} holds on this host only; `--device` says it for all hosts"
        )
    components = os.environ.get("SLURM_HET_SIZE", "")
    if components.isdecimal() and int(components) > 1:
        notes.append(
            f"this heterogeneous Slurm job has {components} components; SLURM_JOB_NODELIST names the hosts "
            f"of the first only. Ranks run on {', '.join(map(str, hosts))}"
        )
    return notes


def _elastic(
    args: argparse.Namespace, hosts: Sequence[Host], words: Sequence[str]
) -> tuple[elastic.Elastic | None, Sequence[str]]:
    """How the job is elastic, None where it is not; and its words with ``--elastic``.

    Raises:
        UserError: what is asked for cannot be had with, or without, ``--elastic``.
    """
    if not args.elastic:
        for flag, count in (("--min-np", args.least), ("--max-np", args.most)):
            if count is not None:
                raise UserError("goes with --elastic only", where=flag)
        return None, words
    if args.launcher != "horovodrun-gloo":
        flag = transport.FLAGS[args.launcher]
        other = ", or use --max-restarts" if flag == "--torch" else ""
        raise UserError("needs horovodrun over Gloo", where="--elastic", fix=f"leave {flag} out{other}")
    if not words or words[0] != "train":
        plan.program(words)  # no program at all is the first thing to say
        raise UserError("is for train only", where="--elastic", fix=f"launch {words[0]} without it")
    slots = sum(host.slots for host in hosts)
    first, least, most = elastic.bounds(slots, args.ranks, args.least, args.most)
    changing = Path.cwd() / args.hostfile if args.hostfile else None
    made = elastic.Elastic(first, least, most, _wait_s(words[1:]), changing)
    return made, words if "--elastic" in words else [*words[:1], "--elastic", *words[1:]]


def _wait_s(flags: Sequence[str]) -> float:
    """``--elastic-wait`` of the run; its other flags are parsed on the way.

    Raises:
        UserError: no such flags.
    """
    given = with_words(train_parser("horovod-yolo train"), "train").parse_strictly(flags)
    wait_s: float = getattr(given, "elastic_wait", TrainConfig.elastic_wait)
    if not 0 < wait_s < math.inf:
        raise UserError(f"{wait_s} is no number of seconds above 0", where="--elastic-wait")
    return wait_s
