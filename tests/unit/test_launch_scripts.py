"""The launch scripts turn what a scheduler says into one command. Its variables are made up here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
LAUNCH = REPO / "launch"
BIN = Path(sys.executable).parent
SCRIPTS = ["horovodrun.sh", "mpirun.sh", "slurm.sbatch", "pbs.sh", "lsf.sh"]
JOB = ["--interface", "eth0", "--dry-run", "--", "train", "--data", "a b.yaml"]
SAFE = " -P" if sys.version_info >= (3, 11) else ""  # nothing is imported from the working folder
TRAIN = f"python{SAFE} -m horovod_yolo.cli train --data 'a b.yaml'"
GLOO = "horovodrun --gloo --disable-cache --network-interfaces eth0"
TWICE_FOUR = f"{GLOO} -np 8 -H host1:4,host2:4 {TRAIN}"
# Prints the names that the test gives it, whatever Slurm's short form is.
SCONTROL = '#!/bin/sh\n[ "$*" = "show hostnames $SLURM_JOB_NODELIST" ] && printf "%s\\n" $NAMES\n'


def call(script: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script with these variables and nothing else of the environment but the PATH."""
    path = f"{cwd / 'bin'}:{BIN}:{os.environ['PATH']}"
    return subprocess.run(
        [str(LAUNCH / script), *arguments],
        cwd=cwd,
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def command(script: str, *arguments: str, cwd: Path, **variables: str) -> str:
    """What a dry run prints, without the folders of the tools and the version of Python."""
    done = call(script, *arguments, cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return re.sub(r"(?:/[\w.-]+)+/bin/(python|\w+)[\d.]*", r"\1", done.stdout).strip()


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Variables of a batch script on three hosts."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(SCONTROL)
    (tmp_path / "bin/scontrol").chmod(0o755)
    return {
        "SLURM_JOB_NODELIST": "host[1-3]",
        "SLURM_TASKS_PER_NODE": "4(x2),3",
        "NAMES": "host1 host2 host3",
        "SLURM_SUBMIT_DIR": str(REPO),
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_NTASKS": "11",
        "SLURM_PROCID": "0",
    }


def test_horovodrun(tmp_path: Path) -> None:
    assert command("horovodrun.sh", "--hosts", "host1:4,host2:4", *JOB, cwd=tmp_path) == TWICE_FOUR
    shown = command("horovodrun.sh", "--mpi", "--hosts", "localhost:2", *JOB[2:], cwd=tmp_path)
    assert shown.startswith("horovodrun --mpi '--mpi-args=-mca ") and shown.endswith(
        f"-H localhost:2 {TRAIN}"
    )


def test_mpirun(tmp_path: Path) -> None:
    root = " --allow-run-as-root" if os.geteuid() == 0 else ""
    assert command("mpirun.sh", "--hosts", "localhost:2", *JOB[2:], cwd=tmp_path, OMP_NUM_THREADS="2") == (
        f"mpirun{root} -np 2 -H localhost:2 -bind-to none -map-by slot -mca pml ob1 -mca btl self,vader "
        f"-mca mpi_yield_when_idle 1 -x OMP_NUM_THREADS -x PATH {TRAIN}"
    )


def test_slurm_with_horovodrun(tmp_path: Path, slurm: dict[str, str]) -> None:
    expected = f"{GLOO} -np 11 -H host1:4,host2:4,host3:3 {TRAIN}"
    assert command("slurm.sbatch", *JOB, cwd=tmp_path, **slurm) == expected


@pytest.mark.parametrize(
    ("tasks", "names", "expected"),
    [("4", "host1", "host1:4"), ("1,2,3", "a b c", "a:1,b:2,c:3"), ("2(x3)", "a b c", "a:2,b:2,c:2")],
)
def test_slurms_short_form_of_tasks(
    tmp_path: Path, slurm: dict[str, str], tasks: str, names: str, expected: str
) -> None:
    slurm |= {"SLURM_TASKS_PER_NODE": tasks, "NAMES": names}
    assert f" -H {expected} " in command("slurm.sbatch", *JOB, cwd=tmp_path, **slurm)


def test_slurm_sets_the_threads_of_a_rank(tmp_path: Path, slurm: dict[str, str]) -> None:
    """The launcher is replaced by one that shows them."""
    submit = tmp_path / "checkout/.venv/bin"
    submit.mkdir(parents=True)
    (submit / "horovod-yolo").write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $*"\n')
    (submit / "horovod-yolo").chmod(0o755)
    slurm |= {"SLURM_SUBMIT_DIR": str(tmp_path / "checkout")}
    shown = call("slurm.sbatch", "--", "val", cwd=tmp_path, **slurm)
    assert shown.stdout == "6 launch --hosts host1:4,host2:4,host3:3 -- val\n"
    shown = call("slurm.sbatch", "--", "val", cwd=tmp_path, OMP_NUM_THREADS="2", **slurm)
    assert shown.stdout.startswith("2 launch")


def test_slurm_with_srun(tmp_path: Path, slurm: dict[str, str]) -> None:
    shown = call("slurm.sbatch", "--srun", "--dry-run", "--", "train", "--data", "a b", cwd=tmp_path, **slurm)
    assert shown.stdout == "srun --mpi=pmix -K --cpus-per-task=6 horovod-yolo train --data a\\ b \n"
    (tmp_path / "bin/srun").write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 7\n')
    (tmp_path / "bin/srun").chmod(0o755)
    done = call("slurm.sbatch", "--srun", "--", "train", "--data", "a b", cwd=tmp_path, **slurm)
    assert done.returncode == 7  # the job's own code reaches Slurm
    assert done.stdout == "<--mpi=pmix><-K><--cpus-per-task=6><horovod-yolo><train><--data><a b>"


def test_slurm_with_srun_in_a_heterogeneous_job(tmp_path: Path, slurm: dict[str, str]) -> None:
    done = call("slurm.sbatch", "--srun", "--dry-run", "--", "val", cwd=tmp_path, **slurm, SLURM_HET_SIZE="2")
    assert done.returncode == 0 and "uses the first component only" in done.stderr


# Ends with 3 on the signal that it names, as training does.
STOPPABLE = """#!/bin/bash
trap 'echo "heard $*"; exit 3' USR1
echo ready
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    ("way", "tool", "resume", "requeued"),
    [
        ("--srun", "srun", "--resume=auto", True),
        ("", "horovod-yolo", "--resume auto", True),
        ("", "horovod-yolo", "resume=auto", True),
        ("", "horovod-yolo", "", False),
    ],
)
def test_slurm_passes_the_warning_on_and_requeues(
    tmp_path: Path, slurm: dict[str, str], number: int, way: str, tool: str, resume: str, requeued: bool
) -> None:
    queue = tmp_path / "requeued"
    (tmp_path / "bin/scontrol").write_text(f'{SCONTROL}[ "$1" = requeue ] && echo "$2" > {queue}\nexit 0\n')
    folder = tmp_path / "checkout/.venv/bin"
    folder.mkdir(parents=True)
    (folder / tool).write_text(STOPPABLE)
    (folder / tool).chmod(0o755)
    words = [*way.split(), "--", "train", "--data", "d", *resume.split()]
    job = subprocess.Popen(
        [str(LAUNCH / "slurm.sbatch"), *words],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}",
            **slurm,
            "SLURM_SUBMIT_DIR": str(tmp_path / "checkout"),
            "SLURM_JOB_ID": "17",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None and job.stdout.readline() == "ready\n"
    job.send_signal(number)
    printed, complaint = job.communicate(timeout=30)
    assert job.returncode == 3
    assert "heard" in printed
    if number == signal.SIGTERM:  # scancel, or preemption, after which Slurm itself requeues
        assert not queue.exists() and not complaint
        return
    assert (queue.exists() and queue.read_text() == "17\n") is requeued
    assert requeued or "with --resume auto the job would put itself back" in complaint


def test_slurm_that_does_not_answer_starts_nothing(tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / "bin/scontrol").write_text(
        "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n"
    )
    done = call("slurm.sbatch", *JOB, cwd=tmp_path, **slurm)
    assert (done.returncode, done.stdout) == (1, "") and "Unable to contact" in done.stderr


def test_pbs(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "nodes").write_text("host1\n" * 4 + "host2\n" * 4)
    variables = {"PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_O_WORKDIR": str(tmp_path)}
    assert command("pbs.sh", *JOB, cwd=tmp_path / "home", **variables) == TWICE_FOUR
    (tmp_path / "nodes").write_text("host1\nhost2 -x\n")
    done = call("pbs.sh", *JOB, cwd=tmp_path, **variables)
    assert done.returncode == 2 and f"{tmp_path / 'nodes'}:2: " in done.stderr


def test_pbs_starts_where_it_was_submitted(tmp_path: Path) -> None:
    (tmp_path / "my.py").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "nodes").write_text("localhost\n")
    variables = {"PBS_NODEFILE": "nodes", "PBS_O_WORKDIR": str(tmp_path)}
    shown = command("pbs.sh", "--dry-run", "--", "my.py", cwd=tmp_path / "home", **variables)
    assert shown.endswith("-np 1 -H localhost:1 python my.py")


@pytest.mark.parametrize(
    "variables",
    [
        {"LSB_MCPU_HOSTS": "host1 4 host2 4 "},
        {"LSB_HOSTS": "host1 host1 host1 host1 host2 host2 host2 host2"},
        {"LSB_MCPU_HOSTS": "host1 4 host2 4", "LSB_HOSTS": "host1 host2"},
    ],
)
def test_lsf(tmp_path: Path, variables: dict[str, str]) -> None:
    assert command("lsf.sh", *JOB, cwd=tmp_path, **variables) == TWICE_FOUR


def test_lsf_that_names_half_a_host(tmp_path: Path) -> None:
    done = call("lsf.sh", *JOB, cwd=tmp_path, LSB_MCPU_HOSTS="host1 4 host2")
    assert done.returncode == 2 and "'' is no number of slots" in done.stderr


@pytest.mark.parametrize(
    ("script", "way"), [("slurm.sbatch", "sbatch"), ("pbs.sh", "qsub"), ("lsf.sh", "bsub")]
)
def test_outside_of_a_job_the_way_in_is_named(tmp_path: Path, script: str, way: str) -> None:
    done = call(script, *JOB, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: not in a") and f"Submit with: {way} " in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_safe_and_clean(script: str) -> None:
    text = (LAUNCH / script).read_text(encoding="utf-8")
    assert "\nset -euo pipefail\n" in text and os.access(LAUNCH / script, os.X_OK)
    tool = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("no shellcheck: `make setup` installs it")
    done = subprocess.run([tool, str(LAUNCH / script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
