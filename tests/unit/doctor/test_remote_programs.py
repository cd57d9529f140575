"""The probe, the agent and what talks to them, for real on this machine."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.doctor import agent, collect, probe, ssh
from horovod_yolo.doctor.collect import Questions, Report, ask, default_folders
from horovod_yolo.doctor.data_key import describe
from horovod_yolo.doctor.links import AGENT, try_out
from horovod_yolo.doctor.rules import findings
from horovod_yolo.launch.hostfile import Host
from tests.unit.doctor.hosts import FACTS

HERE = (Host("localhost", 1),)


@pytest.fixture(scope="module")
def answer(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    cache = tmp_path_factory.mktemp("cache")
    (report,) = ask(HERE, Questions(str(digits), default_folders("runs/train", str(cache))))
    return report


@pytest.mark.parametrize("path", [collect.PROBE, AGENT], ids=lambda path: path.name)
def test_what_is_sent_needs_the_standard_library_only(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= sys.stdlib_module_names


def test_this_host_answers(answer: Report) -> None:
    import torch

    assert answer.complete and answer.errors == ""
    assert answer.facts.keys() == FACTS.keys()
    assert list(answer.facts)[-1] == "imports"  # whatever it takes, all else has arrived
    facts = answer.facts["packages"]
    assert facts["torch"] == {"version": str(torch.__version__), "cuda": torch.version.cuda}
    assert facts["horovod_yolo"]["folder"] == str(Path(collect.__file__).parents[1])
    for section, expected in FACTS.items():
        assert answer.facts[section].keys() == expected.keys(), section
    assert answer.clock is not None and answer.clock[0] <= 0 <= answer.clock[1]


def test_horovod_is_read_as_it_describes_itself(answer: Report) -> None:
    hvd = pytest.importorskip("horovod.torch")
    facts = answer.facts["packages"]["horovod"]
    built = {"MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built(), "NCCL": bool(hvd.nccl_built())}
    assert facts["backends"] == [name for name, there in built.items() if there]
    assert facts["extension"] and facts["built_for"] == answer.facts["packages"]["torch"]["version"]


@pytest.fixture
def broken_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installed, of the version that fits, and as one for CUDA ends beside a torch for CPUs."""
    import torch

    folder = tmp_path / "site"
    (folder / "torchvision").mkdir(parents=True)
    line = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (folder / "torchvision/__init__.py").write_text(line)
    (folder / "torchvision-0.28.0.dist-info").mkdir()
    needed = f"Requires-Dist: torch (=={torch.__version__.partition('+')[0]})"
    about = f"Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n{needed}\n"
    (folder / "torchvision-0.28.0.dist-info/METADATA").write_text(about)
    package = Path(collect.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{package}")
    return folder


@pytest.mark.usefixtures("broken_torchvision")
def test_a_torchvision_that_fails_when_it_is_imported() -> None:
    reports = ask(HERE, Questions())
    assert reports[0].complete
    assert [str(one) for one in findings(reports) if one.kind == "torchvision"] == [
        "localhost: torchvision 0.28.0 cannot be imported (RuntimeError: operator torchvision::nms does not "
        "exist). nothing here needs it: uninstall it, or take it from where torch is from (CPUs, CUDA)"
    ]


@pytest.mark.usefixtures("broken_torchvision")
def test_a_run_beside_a_torchvision_that_fails_trains(digits: Path, tmp_path: Path) -> None:
    flags = [
        "--cfg",
        "yolov8n",
        "--img",
        "64",
        "--batch",
        "14",
        "--max-steps",
        "2",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    words = ["-m", "horovod_yolo.cli", "train", "--data", str(digits), "--project", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, *words, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/exp/weights/best.pt").is_file()
    done = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    assert "torchvision::nms" in done.stderr, "the run was beside another one"


def test_a_backend_is_told_by_its_symbols(tmp_path: Path) -> None:
    extension = tmp_path / "mpi_lib_v2.so"
    for content, found in ((b"", []), (b"\0ELF", []), (b"xx\0ncclAllReduce\0", ["NCCL"])):
        extension.write_bytes(content)
        assert probe._backends(extension) == found


def test_gpus_are_read_from_the_drivers_lines() -> None:
    lines = "NVIDIA H200, 580.95.05, 143771\nNVIDIA H200, 580.95.05, 143771\n\n"
    assert (
        probe.parse_gpus(lines)
        == [{"name": "NVIDIA H200", "driver": "580.95.05", "memory_mib": "143771"}] * 2
    )


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not'; exit 9", "NVIDIA-SMI has failed"),
        ("exit 3", "code 3"),
    ],
)
def test_a_driver_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = probe.gpus({})
    assert error in found["error"] and found["gpus"] == []


def test_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    there, missing = probe._space(str(tmp_path)), probe._space(str(tmp_path / "a" / "b"))
    assert there is not None and missing is not None
    assert missing["device"] == there["device"] and missing["total"] == there["total"] > 0
    assert missing["path"].endswith("a/b")


def test_own_interfaces_are_found() -> None:
    found = probe.network({})["interfaces"]
    for card in found:
        with socket.create_server((card["address"], 0)):
            assert card["name"] != "lo"


def test_the_data_set_is_known_by_its_content(answer: Report, digits: Path, tmp_path: Path) -> None:
    expected = describe(digits)
    assert answer.facts["data"] == expected
    assert {split: found["images"] for split, found in expected["splits"].items()} == {"train": 28, "val": 7}
    copy = tmp_path / "copy"
    shutil.copytree(digits.parent, copy)
    assert describe(copy / "data.yaml") == expected
    next((copy / "labels" / "val").glob("*.txt")).write_text("0 0.5 0.5 0.25 0.25\n" * 3)
    changed = describe(copy / "data.yaml")["splits"]
    assert changed["train"] == expected["splits"]["train"] and changed["val"] != expected["splits"]["val"]
    assert "none.yaml" in describe(tmp_path / "none.yaml")["error"]


def test_no_set_is_made_in_the_folder_that_ssh_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host that lacks the job's folder."""
    monkeypatch.chdir(tmp_path)
    asked = {"cwd": str(tmp_path / "job"), "data": "digits", "pythonpath": "", "ends": time.monotonic() + 60}
    assert probe.data(asked) == {"error": "the job's folder is not there"}
    assert list(tmp_path.iterdir()) == []


def test_a_slow_package_that_nothing_needs_costs_a_host_no_answer(
    broken_torchvision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken_torchvision / "torchvision/__init__.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(sys, "path", [str(broken_torchvision), *sys.path])
    began = time.monotonic()
    asked = {"pythonpath": str(broken_torchvision), "ends": began + 2}
    assert probe.imports(asked) == {"torchvision": None}
    assert time.monotonic() - began < 10


def test_a_host_that_hangs_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "probe.py"
    script.write_text(
        "import json, sys, time\n"
        "print('Welcome to this cluster')\n"
        "print(json.dumps({'section': 'hello', 'facts': {'time': time.time()}}), flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(collect, "PROBE", script)
    start = time.monotonic()
    (report,) = ask(HERE, Questions(seconds=2))
    assert time.monotonic() - start < 30
    assert report.timed_out and not report.complete and list(report.facts) == ["hello"]


def test_a_probe_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "probe.py"
    script.write_text("raise OSError('no such driver')\n")
    monkeypatch.setattr(collect, "PROBE", script)
    (report,) = ask(HERE, Questions())
    assert report.code == 1 and not report.complete and report.errors.endswith("OSError: no such driver")


def test_words_reach_the_other_side_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for ssh runs the remote command line as sshd does: with the user's shell."""
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ssh.program('{"cwd": "/a b\'s/$HOME", "data": "x;y"}')
    with (
        (tmp_path / "errors").open("wb") as errors,
        ssh.running("elsewhere.invalid", words, errors) as process,
    ):
        output, _ = process.communicate(b"import sys; print(sys.argv[1])", timeout=30)
    assert output.decode().strip() == words[-1]


def test_no_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ssh is not there"):
        ask((Host("elsewhere.invalid", 1),), Questions())


class Agent:
    """``agent.py`` as it runs on a host."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(AGENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = self.ask(["secret", name, ["127.0.0.1"]])["ports"]["127.0.0.1"]

    def ask(self, order: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> int:
        self.process.communicate(timeout=20)
        return self.process.returncode


def test_agents_reach_and_measure_each_other() -> None:
    first, second = Agent("host1"), Agent("host2")
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    try:
        targets = [
            ["127.0.0.1", second.port, "host2"],
            ["127.0.0.1", second.port, "host3"],
            ["127.0.0.1", closed, "host2"],
        ]
        well, other, refused = first.ask({"do": "reach", "targets": targets})["reach"]
        assert well == "" and other == "another host answers: host2" and "refused" in refused
        order = {"do": "send", "address": "127.0.0.1", "port": second.port, "seconds": 0.1}
        assert first.ask(order)["bits"] > 1e6
        assert "refused" in first.ask({**order, "port": closed})["error"]
        with socket.create_connection(("127.0.0.1", second.port), timeout=10) as stranger:
            stranger.sendall(b"guess who".ljust(agent.HEAD))
            assert stranger.recv(100) == b""
        with pytest.raises(ConnectionRefusedError):  # it listens where it was told to, and nowhere else
            socket.create_connection(("127.0.0.2", second.port), timeout=10)
        assert first.ask(order)["bits"] > 1e6  # both still there
    finally:
        codes = first.close(), second.close()
    assert codes == (0, 0)


def test_the_receiver_measures() -> None:
    """What arrives in 0.1 s steps counts from the moment that the sender was told to go."""
    ours, theirs = socket.socketpair()

    def trickle() -> None:
        assert ours.recv(1) == agent.GO
        for _ in range(5):
            time.sleep(0.1)
            ours.sendall(bytes(100_000))
        ours.close()

    sender = threading.Thread(target=trickle)
    sender.start()
    with theirs:
        received, seconds = agent.measured(theirs, 10)
    sender.join()
    assert received == 500_000 and seconds >= 0.5


def test_a_single_host_has_no_links(answer: Report) -> None:
    assert try_out([answer], 10).bits == {}
