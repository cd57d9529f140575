"""`horovod-yolo launch`: what it prints, what it refuses, and one job that really starts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from horovod_yolo import cli
from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import elastic, network, plan, transport

SAFE = "-P " if sys.version_info >= (3, 11) else ""
PYTHON = sys.executable
BIN = Path(PYTHON).parent
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(plan, "tool", lambda launcher: f"/venv/bin/{launcher.split('-')[0]}")
    monkeypatch.setattr(
        network, "find_interface", lambda hosts, needed: ("eth0" if needed or len(hosts) > 1 else None, "")
    )
    monkeypatch.setattr(network, "check_own_name", lambda hosts, bound: None)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            "--hosts host1:4,host2:4",
            "horovodrun --gloo --disable-cache --network-interfaces eth0 -np 8 -H host1:4,host2:4",
        ),
        (
            "-H host1:4,host2:4 -np 5 --interface ib0 --gloo",
            "horovodrun --gloo --disable-cache --network-interfaces ib0 -np 5 -H host1:4,host2:1",
        ),
        ("--hostfile hosts --np 2", "horovodrun --gloo --disable-cache -np 2 -H host1:2"),
        (
            "--hosts localhost:2 --mpi",
            "horovodrun --mpi '--mpi-args=-mca mpi_yield_when_idle 1' --disable-cache -np 2 -H localhost:2",
        ),
        (
            "--hosts localhost:2 --torch --max-restarts 3",
            "torch --standalone --max-restarts 3 --nproc-per-node 2 --no-python",
        ),
    ],
)
def test_a_dry_run_prints_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hosts").write_text("host1 slots=4\nhost2 slots=4\n")
    job = ["train", "--data", "a b.yaml", "--", "x"]
    assert cli.main(["launch", *arguments.split(), "--dry-run", "--", *job]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"/venv/bin/{command} /venv/bin/python {SAFE}-m horovod_yolo.cli {shlex.join(job)}\n"
    assert shown.err == ""


def test_without_gloo_ranks_are_started_over_mpi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transport, "horovod_built_with", lambda: ("MPI",))
    assert cli.main(["launch", "--hosts", "localhost:2", "--dry-run", "--", "val"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("/venv/bin/horovodrun --mpi ")
    assert shown.err == f"note: {transport.WITHOUT_GLOO}. Ranks are started with --mpi\n"
    assert cli.main(["launch", "--elastic", "--hosts", "localhost:2", "--", "train"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --elastic: {transport.WITHOUT_GLOO}. ")


ELASTIC = "--blacklist-cooldown-range 10 60 --elastic-timeout {} --gloo-timeout-seconds 30"


@pytest.mark.parametrize(
    ("arguments", "words", "ranks", "where", "patience"),
    [
        ("-H host1:4,host2:4", "train", "-np 8 --min-np 1", "-u HOSTFILE HOSTS=host1:4,host2:4", 330),
        ("--hostfile hosts", "train", "-np 8 --min-np 1", "'HOSTFILE={}/my jobs/hosts'", 330),
        (
            "-H host1:4,host2:4 -np 4 --min-np 2 --max-np 16",
            "train elastic_wait=12.5 --elastic",
            "-np 4 --min-np 2 --max-np 16",
            "-u HOSTFILE HOSTS=host1:4,host2:4",
            43,
        ),
        ("-H host1:8 --max-np 6", "train", "-np 6 --min-np 1 --max-np 6", "-u HOSTFILE HOSTS=host1:8", 330),
    ],
)
def test_an_elastic_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
    ranks: str,
    where: str,
    patience: int,
) -> None:
    """The script gets its hosts by one word of horovodrun's, which is for a shell."""
    folder = tmp_path / "my jobs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("hosts").write_text("host1 slots=4\nhost2 slots=4\n")
    job = words.split()
    assert cli.main(["launch", "--elastic", *arguments.split(), "--dry-run", "--", *job]) == 0
    found = shlex.split(capsys.readouterr().out.removeprefix("cd / && "))
    script = found[found.index("--host-discovery-script") + 1]
    assert script == f"env {where.format(tmp_path)} bash {elastic.DISCOVERY}"
    found.remove(script)
    assert " ".join(found) == (
        f"/venv/bin/horovodrun --gloo --disable-cache --network-interfaces eth0 {ranks} "
        f"--host-discovery-script {ELASTIC.format(patience)} "
        f"env -C {folder} /venv/bin/python {SAFE}-m horovod_yolo.cli "
        + ("train --elastic" if words == "train" else words)
    )


def test_the_discovery_script_is_part_of_the_package_and_there_once() -> None:
    assert elastic.DISCOVERY.is_file()
    assert REPOSITORY.joinpath("launch/discover_hosts.sh").resolve() == elastic.DISCOVERY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hosts host1:4,host2:4 -np 16 -- train", "16 ranks do not fit 8 slots"),
        ("--hosts host1:4,host2:4 -- ", "nothing to launch"),
        ("--hosts host1:4 train", "unknown argument train"),
        ("-- train", "one of the arguments --hosts/-H --hostfile is required"),
        ("--hosts h:1 --hostfile f -- train", "not allowed with argument"),
        ("--hosts h:1 --mpi --gloo -- train", "not allowed with argument"),
        ("--hosts h:1 --mpirrun -- train", "did you mean --mpirun"),
        ("--hosts h:1 -np many -- train", "invalid int value"),
        ("--hosts h:1 --interface a;b -- train", "'a;b' is no network interface"),
        ("--hosts h:1 --mpirun -x ABSENT_HERE -- train", "-x ABSENT_HERE: no such variable is set"),
        ("--hostfile none -- train", "none: cannot be read"),
        ("--hosts h:4 --min-np 2 -- train", "--min-np: goes with --elastic only"),
        ("--hosts h:4 --max-np 2 -- train", "--max-np: goes with --elastic only"),
        ("--elastic --hosts h:4 --mpi -- train", "--elastic: needs horovodrun over Gloo. leave --mpi out"),
        ("--elastic --hosts h:4 --mpirun -- train", "needs horovodrun over Gloo. leave --mpirun out"),
        ("--elastic --hosts h:4 --torch -- train", "leave --torch out, or use --max-restarts"),
        ("--hosts h:4 --max-restarts 3 -- train", "--max-restarts: goes with --torch only"),
        ("--hosts h:4 --torch --max-restarts -1 -- train", "--max-restarts: -1 is no number of restarts"),
        ("--elastic --hosts h:4 -- val", "--elastic: is for train only. launch val without it"),
        ("--elastic --hosts h:4 -- none.py", "none.py: no such file"),
        ("--elastic --hosts h:4 --", "nothing to launch"),
        ("--elastic --hosts h:4 -np 2 --min-np 3 -- train", "--min-np: 3 ranks at least are more than the 2"),
        ("--elastic --hosts h:4 -np 3 --max-np 2 -- train", "-np: 3 ranks to begin with are more than --max"),
        (
            "--elastic --hosts h:4 --min-np 3 --max-np 2 -- train",
            "--min-np: 3 ranks at least are more than the 2",
        ),
        ("--elastic --hosts h:4 --min-np 0 -- train", "--min-np: 0 ranks are none"),
        ("--elastic --hosts h:4 -np 5 -- train", "-np: 5 ranks do not fit 4 slots"),
        ("--elastic --hosts h:4 -- train --epoch 3", "unknown argument --epoch"),
        ("--elastic --hosts h:4 -- train --elastic-wait nan", "--elastic-wait: nan is no number of seconds"),
    ],
)
def test_mistakes_start_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail(f"started {call[1]}"))
    assert cli.main(["launch", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_a_bad_name_of_this_host_stops_a_job_but_not_a_dry_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(hosts: object, bound: bool) -> None:
        raise UserError("this host's own name is 127.0.1.1")

    monkeypatch.setattr(network, "check_own_name", refuse)
    monkeypatch.setattr(os, "execve", lambda *call: pytest.fail(f"started {call[1]}"))
    job = ["--", "train", "--data", "d"]
    assert cli.main(["launch", "--hosts", "h1,h2", *job]) == 2
    assert "error: this host's own name is 127.0.1.1" in capsys.readouterr().err
    assert cli.main(["launch", "--hosts", "h1,h2", "--dry-run", *job]) == 0
    shown = capsys.readouterr()
    assert shown.err == "note: this host's own name is 127.0.1.1\n" and "-H h1:1,h2:1" in shown.out


def test_the_launcher_gets_the_command_and_an_environment_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("HF_TOKEN", "hidden")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert cli.main(["launch", "--hosts", "localhost:2", "--mpirun", "--", "val"]) == 0
    ((path, argv, environment),) = started
    assert path == argv[0] == "/venv/bin/mpirun" and argv[-1] == "val"
    assert "HF_TOKEN" not in environment and "HF_TOKEN" not in argv and "NCCL_DEBUG" in argv


@pytest.mark.parametrize("launcher", ["--gloo", "--mpi", "--mpirun", "--torch"])
def test_a_real_job(tmp_path: Path, launcher: str) -> None:
    if not (BIN / "horovodrun").exists() or not (BIN / "mpirun").exists():
        pytest.skip(f"no horovodrun and mpirun in {BIN}: nothing to launch with")
    script = tmp_path / "a place with spaces" / "rank.py"
    script.parent.mkdir()
    script.write_text(
        "import os, pathlib, sys\n"
        "from horovod_yolo.distributed.launchers.found import launcher\n"
        "rank, size = launcher().rank, launcher().size\n"
        "found = f'{(rank, size)} {sys.argv[1:]} {\"HF_TOKEN\" in os.environ}'\n"
        "pathlib.Path(__file__).with_name(f'{rank}.txt').write_text(found)\n"
    )
    command = [PYTHON, "-m", "horovod_yolo.cli", "launch"]
    done = subprocess.run(
        [*command, "--hosts", "localhost:4", "-np", "2", launcher, "--", str(script), "a b", "$HOME"],
        env={**os.environ, "HF_TOKEN": "hidden", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in script.parent.glob("*.txt")}
    assert found == {f"{rank}.txt": f"({rank}, 2) ['a b', '$HOME'] False" for rank in range(2)}


@pytest.mark.parametrize(
    ("hosts", "variables", "note"),
    [
        (
            "h1,h2",
            {"CUDA_VISIBLE_DEVICES": "2,3"},
            "CUDA_VISIBLE_DEVICES=2,3 holds on this host only; `--device`",
        ),
        ("localhost", {"CUDA_VISIBLE_DEVICES": "2,3"}, ""),
        (
            "h1:4",
            {"SLURM_HET_SIZE": "2"},
            "has 2 components; SLURM_JOB_NODELIST names the hosts of the first",
        ),
        ("h1:4", {"SLURM_HET_SIZE": "1"}, ""),
        ("localhost,127.0.0.1", {}, "localhost and 127.0.0.1 are one host: it gets 2 ranks, as localhost"),
    ],
)
def test_notes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hosts: str,
    variables: dict[str, str],
    note: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["launch", "--hosts", hosts, "--dry-run", "--", "train"]) == 0
    said = capsys.readouterr().err
    assert note in said and said.count("\n") == bool(note)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HOROVOD_YOLO_HEARTBEAT_SECONDS", "60s"), ("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "10m")],
)
def test_a_variable_with_a_unit_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert cli.main(["launch", "--hosts", "localhost:2", "--", "train"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {name}: '{value}' is no number. write it without a unit, such as 60\n"
    )


@pytest.mark.parametrize("launcher", ["--gloo", "--mpi", "--mpirun"])
def test_a_job_leaves_the_input_to_the_script_around_it(tmp_path: Path, launcher: str) -> None:
    if not (BIN / "horovodrun").exists() or not (BIN / "mpirun").exists():
        pytest.skip(f"no horovodrun and mpirun in {BIN}: nothing to launch with")
    (tmp_path / "rank.py").write_text("")
    job = f"{PYTHON} -m horovod_yolo.cli launch --hosts localhost:1 {launcher} -- {tmp_path}/rank.py"
    loop = f"while read -r name; do {job} && echo $name; done"
    done = subprocess.run(
        ["sh", "-c", loop], input="one\ntwo\n", capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert done.stdout.split() == ["one", "two"], done.stderr
