"""The table shows hosts side by side, what is wrong last, and fits a terminal; JSON has everything."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console

from horovod_yolo import cli
from horovod_yolo.doctor.examine import Examination
from horovod_yolo.doctor.links import Network
from horovod_yolo.doctor.rules import findings
from horovod_yolo.doctor.table import ROWS, show
from horovod_yolo.doctor.trial import Trial
from tests.unit.doctor.hosts import change, cluster, report, with_gpus


def examined(count: int, *, broken: str = "") -> Examination:
    reports = with_gpus(cluster(count))
    for i, one in enumerate(reports):
        if one.host == broken:
            reports[i] = change(one, "packages.torch.version", "2.12.0+cu130")
    names = [one.host for one in reports]
    network = Network(bits=dict.fromkeys(itertools.permutations(names, 2), 9400000000.0))
    trial = None if broken else Trial(count, 1 << 20, 0.0113, "cpu")
    return Examination(tuple(reports), network, trial, tuple(findings(reports)))


def shown(examination: Examination, width: int = 100) -> str:
    out = io.StringIO()
    show(examination, Console(file=out, width=width))
    return out.getvalue()


def test_healthy_hosts() -> None:
    text = shown(examined(4))
    assert text.splitlines()[-1] == "healthy"
    assert "allreduce of 1.0 MB over 4 ranks: 11.3 ms" in text
    assert "slowest link: host1 and host2, 9.4 Gbit/s" in text
    assert text.count("4 x H200") == 4 and text.count("9400") == 12
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_wrong_comes_last_with_its_remedy() -> None:
    lines = shown(examined(4, broken="host3")).splitlines()
    assert lines[-3] == "host3: torch 2.12.0+cu130 where 3 hosts have 2.13.0"
    assert lines[-2].rstrip() == "    install the same one, then build Horovod for it"
    assert lines[-1] == "1 to mend"
    assert "allreduce: not tried, a job could not start" in lines


def test_of_many_hosts_those_with_findings_are_shown() -> None:
    text = shown(examined(64, broken="host50"))
    assert "host50" in text and "60 more hosts: see --json" in text and "host9" not in text
    assert "Mbit/s from, to" not in text and "slowest link" in text


def test_a_host_that_did_not_answer_has_a_column() -> None:
    down = report("host2", facts={}, clock=None, code=255, errors="No route to host")
    reports = [report("host1"), down]
    text = shown(Examination(tuple(reports), Network(), None, tuple(findings(reports))))
    assert "no answer" in text and "host2: ssh does not get there (No route to host)" in text


def test_every_kind_of_finding_has_a_row() -> None:
    folder = Path(cli.__file__).parents[1] / "doctor"
    source = "".join(file.read_text() for file in folder.glob("*_rules.py"))
    kinds = {kind for row in ROWS.values() for kind in row}
    for kind in kinds - {"interface"}:
        stem = kind.removesuffix("-missing")
        assert f'"{kind}"' in source or f'"{stem}"' in source, kind


def test_json_has_everything() -> None:
    found = json.loads(json.dumps(examined(3, broken="host2").as_json()))
    assert found["healthy"] is False and found["findings"][0]["hosts"] == ["host2"]
    assert found["hosts"]["host1"]["facts"]["packages"]["torch"]["version"] == "2.13.0"
    assert found["bits_per_s"]["host1"]["host3"] == 9.4e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hosts a,,b", "a host is missing between two commas"),
        ("--hosts a --hostfile b", "not allowed with argument"),
        ("--hostfile none", "none: cannot be read"),
        ("--hots a", "did you mean --hosts"),
        ("--interface a;b", "'a;b' is no network interface"),
        ("--timeout soon", "invalid float value"),
    ],
)
def test_mistakes(
    arguments: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", *arguments.split()]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
