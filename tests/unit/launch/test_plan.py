"""The command is complete, for no shell, and fits its hosts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from horovod_yolo.core.errors import UserError
from horovod_yolo.launch import plan
from horovod_yolo.launch.hostfile import Host, parse_hosts

HOSTS = parse_hosts("host1:4,host2:4")
TRAIN = ("python", "train.py", "--data", "a b.yaml")


def test_sixteen_ranks_do_not_fit_eight_slots() -> None:
    with pytest.raises(UserError, match=r"^host1:4,host2:4: 16 ranks do not fit 8 slots\. lower -np"):
        plan.fit(HOSTS, 16)
    with pytest.raises(UserError, match="-np: 0 ranks are none"):
        plan.fit(HOSTS, 0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_slots_add_up_to_the_ranks(slots: list[int], data: st.DataObject) -> None:
    """Over Gloo horovodrun would fill the slots that are left over."""
    hosts = [Host(f"h{i}", count) for i, count in enumerate(slots)]
    ranks = data.draw(st.integers(1, sum(slots)))
    one_by_one = [host.name for host in hosts for _ in range(host.slots)][:ranks]
    assert [host.name for host in plan.fit(hosts, ranks) for _ in range(host.slots)] == one_by_one
    assert plan.fit(hosts) == tuple(hosts)


def test_over_gloo() -> None:
    made = plan.LaunchPlan("horovodrun-gloo", "/bin/horovodrun", plan.fit(HOSTS, 5), TRAIN, "eth0")
    assert made.argv() == [
        *("/bin/horovodrun", "--gloo", "--disable-cache", "--network-interfaces", "eth0"),
        *("-np", "5", "-H", "host1:4,host2:1"),
        *TRAIN,
    ]


def test_over_gloo_the_time_is_a_word() -> None:
    """Horovodrun looks for its own flags in the program's, and has two that begin so."""
    for program, expected in (
        (("python", "-m", "x", "train", "--time", "2", "--name", "r"), ["train", "time=2", "--name", "r"]),
        (("python", "train.py", "--time=0.5", "--epochs", "3"), ["train.py", "time=0.5", "--epochs", "3"]),
        (("python", "own.py", "--time", "2"), ["own.py", "--time", "2"]),
    ):
        argv = plan.LaunchPlan("horovodrun-gloo", "horovodrun", HOSTS, program).argv()
        assert argv[-len(expected) :] == expected
        assert plan.LaunchPlan("mpirun", "mpirun", HOSTS, program).argv()[-len(program) :] == list(program)


def test_over_mpi() -> None:
    made = plan.LaunchPlan("horovodrun-mpi", "horovodrun", HOSTS, TRAIN, prefix="/a b")
    options = "--mpi-args=--prefix '/a b' -mca mpi_yield_when_idle 1"
    assert made.argv() == [
        *("horovodrun", "--mpi", options, "--disable-cache", "-np", "8", "-H", "host1:4,host2:4"),
        *TRAIN,
    ]
    assert "--prefix" not in " ".join(plan.LaunchPlan("horovodrun-mpi", "h", HOSTS, TRAIN).argv())


def test_mpirun() -> None:
    made = plan.LaunchPlan(
        "mpirun", "mpirun", HOSTS, TRAIN, interface="ib0", names=("OMP_NUM_THREADS", "PATH"), as_root=True
    )
    assert shlex.join(made.argv()) == (
        "mpirun --allow-run-as-root -np 8 -H host1:4,host2:4 -bind-to none -map-by slot -mca pml ob1 "
        "-mca btl tcp,self,vader -mca btl_tcp_if_include ib0 -mca mpi_yield_when_idle 1 -x OMP_NUM_THREADS "
        "-x PATH -x NCCL_SOCKET_IFNAME=ib0 python train.py --data 'a b.yaml'"
    )
    assert "--allow-run-as-root" not in plan.LaunchPlan("mpirun", "mpirun", HOSTS, TRAIN).argv()


def test_on_one_host_ranks_of_mpirun_open_no_port() -> None:
    argv = plan.LaunchPlan("mpirun", "mpirun", HOSTS[:1], TRAIN).argv()
    assert argv[argv.index("btl") + 1] == "self,vader"


def test_an_interface_that_the_user_gave_nccl_stays() -> None:
    made = plan.LaunchPlan("mpirun", "mpirun", HOSTS, TRAIN, "eth0", ("NCCL_SOCKET_IFNAME",))
    assert [word for word in made.argv() if "NCCL" in word] == ["NCCL_SOCKET_IFNAME"]


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my script.py").write_text("")
    ours = plan.module_command("horovod_yolo.cli")
    assert plan.program(["train", "--data", "d"]) == (*ours, "train", "--data", "d")
    assert plan.program(["val"]) == (*ours, "val")
    assert plan.program(["bench", "comm"]) == (*ours, "bench", "comm")
    assert plan.program(["my script.py", "-x", "--"]) == (sys.executable, "my script.py", "-x", "--")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to launch. write it after `--`"),
        (["eval", "--gt", "x"], "eval: is neither train, val, predict, replay, bench nor a Python script"),
        (["--data", "d"], "--data: is neither"),
        (["none.py"], "none.py: no such file"),
    ],
)
def test_what_is_no_program(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.program(words)


SECRETS = {
    "WANDB_API_KEY": "1",
    "AWS_SECRET_ACCESS_KEY": "2",
    "HF_TOKEN": "3",
    "PGPASSWORD": "4",
    "my_token": "5",
}


def test_secrets_and_the_rank_of_an_outer_job_stay_here() -> None:
    kept = {"HOME": "/root", "TOKENIZERS_PARALLELISM": "0", "HOROVOD_GLOO_TIMEOUT_SECONDS": "60"}
    outer = {"HOROVOD_RANK": "1", "HOROVOD_LOCAL_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1"}
    outer |= {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "a"}
    assert plan.environment({**SECRETS, **kept, **outer}) == {**kept, "PATH": str(plan.scripts())}


def test_this_pythons_programs_come_first_and_once() -> None:
    path = plan.environment({"PATH": f"/usr/bin:{plan.scripts()}:/bin:"})["PATH"]
    assert path == f"{plan.scripts()}:/usr/bin:/bin"


def test_what_mpirun_passes_on() -> None:
    theirs = {"PATH": "p", "PYTHONPATH": "q", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2", "CUDA_HOME": "/c"}
    noise = {
        "PWD": "/",
        "SSH_CLIENT": "x",
        "SLURM_NTASKS": "4",
        "MINE": "1",
        "HOROVOD_SIZE": "2",
        "PATHS": "x",
    }
    assert plan.passed_on({**theirs, **noise, **SECRETS}) == tuple(sorted(theirs))
    assert plan.passed_on({**theirs, **noise}, ["MINE"]) == tuple(sorted([*theirs, "MINE"]))
    assert plan.passed_on({"NCCL_TOKEN": "x"}) == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ABSENT", "-x ABSENT: no such variable is set"),
        ("A=1", "no such variable"),
        ("HF_TOKEN", "-x HF_TOKEN: looks like a secret"),
    ],
)
def test_what_may_not_be_passed_on(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan.passed_on({**SECRETS, "A=1": ""}, [name])


@pytest.mark.parametrize("name", ["-x", "eth0 -x", "a;b", "", "eth0,", "10.0.0.0/8"])
def test_what_is_no_interface(name: str) -> None:
    with pytest.raises(UserError, match="is no network interface"):
        plan.checked_interface(name)
    assert [plan.checked_interface(n) for n in ("eth0", "ib0,ib1", "bond0.7")] == [
        "eth0",
        "ib0,ib1",
        "bond0.7",
    ]


def test_the_tool_beside_this_python_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "venv/bin", tmp_path / "bin"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "mpirun").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(folders[0] / "python"))
    monkeypatch.setenv("PATH", str(folders[1]))
    assert plan.tool("mpirun") == str(folders[0] / "mpirun")
    assert plan.own_mpi(HOSTS) == str(tmp_path / "venv") and plan.own_mpi(HOSTS[:1]) is None
    (folders[0] / "mpirun").unlink()
    assert plan.tool("mpirun") == str(folders[1] / "mpirun") and plan.own_mpi(HOSTS) is None
    with pytest.raises(UserError, match=r"horovodrun is not there\. horovod-yolo install-horovod"):
        plan.tool("horovodrun-mpi")


def test_a_folder_that_a_shell_would_split_is_spelled_out() -> None:
    assert plan.spelled_out(Path("/work/checkout-1.0")) is None
    folder = plan.spelled_out(Path("/my files/$HOME"))
    for launcher in ("horovodrun-gloo", "horovodrun-mpi", "mpirun"):
        made = plan.LaunchPlan(launcher, "tool", HOSTS, TRAIN, folder=folder)
        assert made.argv()[-len(TRAIN) - 3 :] == ["env", "-C", "/my files/$HOME", *TRAIN]


def test_which_gpus_a_host_shows_is_its_own_affair() -> None:
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    environ = dict.fromkeys(names, "2,3")
    assert plan.passed_on({**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == ("CUDA_DEVICE_ORDER",)
    for name in names:
        with pytest.raises(UserError, match=f"-x {name}: is each host's own.* --device 0,2"):
            plan.passed_on(environ, [name])
    assert plan.environment(environ).items() >= environ.items()  # ranks on this host get it


def test_an_environment_too_large_for_an_argument_names_its_longest_variables() -> None:
    """Measured against what horovodrun makes of it for another host: quoted for the rank, then for ssh."""
    made = plan.LaunchPlan("horovodrun-gloo", "horovodrun", HOSTS, TRAIN)
    large = {"BIG": "x" * 70_000, "MANY": "it's " * 8_000, "SMALL": "1"}
    plan.check_size(made, {"BIG": large["BIG"], "SMALL": "1"})
    plan.check_size(plan.LaunchPlan("mpirun", "mpirun", HOSTS, TRAIN), large)
    with pytest.raises(UserError) as raised:
        plan.check_size(made, large)
    assert "MANY (72008 bytes), BIG (70005 bytes), SMALL (8 bytes)" in str(raised.value)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z]{1,9}", fullmatch=True), st.text("a'\n$\u00e9 ", max_size=30_000), max_size=9
    )
)
def test_what_passes_fits(environ: dict[str, str]) -> None:
    made = plan.LaunchPlan("horovodrun-gloo", "horovodrun", HOSTS, TRAIN)
    try:
        plan.check_size(made, environ)
    except UserError:
        return
    command = " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in environ.items()), shlex.join(TRAIN)]
    )
    assert len(shlex.quote(f"cd /work ; exec env {command}").encode()) < 128 * 1024


def test_over_gloo_the_remote_shell_must_hand_input_on() -> None:
    """Kubeflow's first MPI operators run `kubectl exec` without it; ranks would end and say nothing."""
    kubeflow = {"OMPI_MCA_plm_rsh_agent": "/etc/mpi/kubexec.sh"}
    gloo = plan.LaunchPlan("horovodrun-gloo", "horovodrun", parse_hosts("worker-0:4"), ("python",))
    with pytest.raises(UserError, match=r"kubexec.sh hands no input on.* use --mpirun"):
        plan.check_remote_shell(gloo, kubeflow, away=True)
    plan.check_remote_shell(gloo, kubeflow, away=False)
    plan.check_remote_shell(gloo, {"OMPI_MCA_plm_rsh_agent": "ssh"}, away=True)
    for launcher in ("mpirun", "horovodrun-mpi"):
        plan.check_remote_shell(replace(gloo, launcher=launcher), kubeflow, away=True)


@pytest.mark.parametrize("shell", ["/usr/bin/fish", "/opt/bin/nu"])
def test_open_mpi_needs_a_login_shell_that_it_knows(shell: str) -> None:
    """It would wait for ever behind a syntax error on the other host."""
    for launcher in ("mpirun", "horovodrun-mpi"):
        made = plan.LaunchPlan(launcher, launcher, HOSTS, TRAIN)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"login shell {Path(shell).name}. use --gloo"):
            plan.check_shell(made, shell, away=True)
        plan.check_shell(made, shell, away=False)
        for known in ("/bin/bash", "/bin/tcsh", "/usr/bin/zsh", ""):
            plan.check_shell(made, known, away=True)
    plan.check_shell(plan.LaunchPlan("horovodrun-gloo", "horovodrun", HOSTS, TRAIN), shell, away=True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the working folder")
@pytest.mark.parametrize("name", ["horovod/__init__.py", "torch.py", "yaml.py", "logging.py"])
def test_what_lies_in_the_working_folder_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    command = [*plan.module_command("horovod_yolo.cli"), "val", "--weights", "none.pt", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "none.pt: No such file" in done.stderr, done.stderr


def test_in_the_folder_of_the_package_it_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert plan.module_command("horovod_yolo.cli") == (sys.executable, "-m", "horovod_yolo.cli")
