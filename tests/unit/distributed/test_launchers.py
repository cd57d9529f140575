"""Who launched this process is read from the launcher's variables alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.backends import backend_for, connect, engine, note_engine, refuse_stranger
from horovod_yolo.distributed.launchers.alone import Alone
from horovod_yolo.distributed.launchers.found import LAUNCHERS, STRANGERS, launcher
from horovod_yolo.distributed.launchers.torchrun import Torchrun
from horovod_yolo.distributed.local import LocalCommunicator

HOROVODRUN = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
HOROVODRUN |= {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1", "HOROVOD_GLOO_RENDEZVOUS_PORT": "4242"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_UNIVERSE_SIZE": "32"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMIX_RANK": "0"}
MPICH = {"PMI_RANK": "7", "PMI_SIZE": "8", "PMI_FD": "9"}
SLURM_ALLOCATION = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
SLURM_TASK = {**SLURM_ALLOCATION, "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "PMIX_RANK": "5"}
TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    assert set(names) <= set(environment)
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("no launcher", 0, 1)),
        ({"PATH": "/bin", **SLURM_ALLOCATION}, ("no launcher", 0, 1)),  # inside salloc it is alone
        (HOROVODRUN, ("horovodrun", 3, 4)),
        (OPEN_MPI, ("Open MPI", 0, 16)),
        (MPICH, ("MPICH", 7, 8)),
        ({**OPEN_MPI, **HOROVODRUN}, ("horovodrun", 3, 4)),  # horovodrun started from inside an MPI job
        (SLURM_TASK, ("srun", 5, 8)),
        ({**SLURM_TASK, **OPEN_MPI}, ("Open MPI", 0, 16)),  # mpirun starts its daemons with srun
        ({**OPEN_MPI, "OMPI_MCA_ess_base_jobid": "1175584769"}, ("Open MPI", 0, 16)),
        ({"HOROVOD_RANK": "3"}, ("no launcher", 0, 1)),
        ({"HOROVOD_RANK": "", "HOROVOD_SIZE": ""}, ("no launcher", 0, 1)),
        ({"HOROVOD_RANK": "-1", "HOROVOD_SIZE": "4"}, ("no launcher", 0, 1)),
        ({"HOROVOD_RANK": "x", "HOROVOD_SIZE": "4", **MPICH}, ("MPICH", 7, 8)),
    ],
)
def test_who_launched_which_rank(environment: dict[str, str], expected: tuple[str, int, int]) -> None:
    found = launcher(environment)
    assert (found.name, found.rank, found.size) == expected
    assert found.ranks_meet


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_SIZE": "16"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "16"},
        {**HOROVODRUN, "HOROVOD_RANK": "4"},
        {**HOROVODRUN, "HOROVOD_RANK": "٣"},
        {**HOROVODRUN, "HOROVOD_SIZE": "9" * 5000},
        without(SLURM_TASK, "PMIX_RANK"),  # srun --mpi=none, a batch script
        without(SLURM_TASK, "SLURM_STEP_ID"),
        {**SLURM_TASK, "SLURM_PROCID": "0"},
        {**SLURM_TASK, "SLURM_PROCID": "0", "PMIX_RANK": "0", "SLURM_NTASKS": "1"},
        {"PMIX_RANK": "0"},
        {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"PMI_SIZE": "8", "HOROVOD_SIZE": "4"},
        {"PMI_RANK": "7", "HOROVOD_RANK": "3"},
    ],
)
def test_what_is_left_over_does_not_hijack_a_single_process(environment: dict[str, str]) -> None:
    assert isinstance(launcher(environment), Alone)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        (
            without(TORCHRUN, "MASTER_PORT"),
            "rank 1 of 4 (RANK, WORLD_SIZE: a PyTorch job without MASTER_ADDR",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0"}, "rank 0 of 2 (RANK, WORLD_SIZE"),
        # No server behind it: MPI_Init would make a job of one.
        (without(OPEN_MPI, "PMIX_RANK"), "rank 0 of 16 (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE"),
        (without(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK"), "rank 0 of 16 (OMPI_COMM_WORLD_RANK"),
        (
            without(HOROVODRUN, "HOROVOD_GLOO_RENDEZVOUS_ADDR"),
            "rank 3 of 4 (HOROVOD_RANK, HOROVOD_SIZE: horo",
        ),
        (without(MPICH, "PMI_FD"), "rank 7 of 8 (PMI_RANK, PMI_SIZE: MPICH)"),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH2"),
        ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}, "jsrun"),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, "Flux"),
        ({"_CONDOR_PROCNO": "1", "_CONDOR_NPROCS": "2"}, "HTCondor"),
        ({**without(SLURM_TASK, "PMIX_RANK"), "SLURM_STEP_NUM_TASKS": "8"}, "rank 5 of 8 (SLURM_PROCID"),
    ],
)
def test_several_processes_that_do_not_find_each_other_are_refused(
    environment: dict[str, str], names: str
) -> None:
    with pytest.raises(UserError) as raised:
        refuse_stranger(launcher(environment))
    assert names in str(raised.value) and "horovod-yolo launch --hosts localhost:" in str(raised.value)
    refuse_stranger(launcher({**environment, **HOROVODRUN}))  # left over around a job of ours


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM_ALLOCATION,
        {**SLURM_ALLOCATION, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        {"WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "16"},
        SLURM_TASK,
        MPICH,
    ],
)
def test_a_process_alone_and_a_rank_of_ours_are_not(environment: dict[str, str]) -> None:
    refuse_stranger(launcher(environment))


def test_places_on_a_host() -> None:
    def places(environment: dict[str, str]) -> tuple[int | None, int | None]:
        found = launcher(environment)
        return found.local_rank, found.local_size

    assert places({}) == (0, 1)
    assert places(HOROVODRUN) == (1, 2)
    assert places({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == (0, 4)
    assert places({**MPICH, "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}) == (1, 2)
    assert places(MPICH) == (None, None)
    assert places(TORCHRUN) == (1, None)


@pytest.mark.parametrize(("node", "ranks"), [("0", 4), ("1", 4), ("2", 3), ("3", None), ("", None)])
def test_slurm_tells_how_many_ranks_share_a_node(node: str, ranks: int | None) -> None:
    task = {**SLURM_TASK, "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": node}
    assert (launcher(task).local_rank, launcher(task).local_size) == (1, ranks)


def test_what_else_a_launcher_tells() -> None:
    assert not launcher(HOROVODRUN).restarts_ranks
    found = launcher({**HOROVODRUN, "HOROVOD_ELASTIC": "1"})
    assert found.restarts_ranks and found.address == ("10.0.0.1", 4242)
    assert not launcher({**OPEN_MPI, "HOROVOD_ELASTIC": "1"}).restarts_ranks  # left over
    assert launcher({**HOROVODRUN, "PBS_JOBID": "7.server"}).job_id == "7.server"
    assert launcher(SLURM_TASK).job_id == "1" and launcher(OPEN_MPI).job_id == ""


def test_torchrun_is_the_innermost() -> None:
    for around in ({}, HOROVODRUN, OPEN_MPI, SLURM_TASK):
        found = launcher({**around, **TORCHRUN})
        assert (type(found), found.rank, found.size) == (Torchrun, 1, 4)
        assert found.address == ("10.0.0.1", 29500) and not found.keeps_store
        assert (found.restarts, found.most_restarts) == (0, 0)
    agent = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": "2"}
    counts = {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    found = launcher({**TORCHRUN, **agent, **counts})
    assert found.keeps_store and found.local_size == 2
    assert (found.restarts, found.most_restarts) == (2, 3)
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}
    assert isinstance(launcher(alone), Alone)  # left over in a container, perhaps
    assert isinstance(launcher({**alone, **agent}), Torchrun)


@pytest.mark.parametrize(
    ("environment", "wanted", "name"),
    [
        (TORCHRUN, "auto", "TorchCommunicator"),
        (TORCHRUN, "torch", "TorchCommunicator"),
        (OPEN_MPI, "torch", "TorchCommunicator"),
        (OPEN_MPI, "auto", "HorovodCommunicator"),
        (HOROVODRUN, "horovod", "HorovodCommunicator"),
        ({}, "torch", "LocalCommunicator"),
    ],
)
def test_the_engine_follows_the_launcher_or_the_wish(
    environment: dict[str, str], wanted: str, name: str
) -> None:
    assert backend_for(launcher(environment), wanted).__name__ == name


def test_horovod_is_not_under_torchrun() -> None:
    with pytest.raises(UserError, match="do not find each other through Horovod"):
        backend_for(launcher(TORCHRUN), "horovod")


def test_what_the_engine_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine({}) == "auto" and engine({"HOROVOD_YOLO_ENGINE": "torch"}) == "torch"
    with pytest.raises(
        UserError, match=r"HOROVOD_YOLO_ENGINE: engine 'mpi'. take one of auto, horovod, torch"
    ):
        engine({"HOROVOD_YOLO_ENGINE": "mpi"})
    monkeypatch.setenv("HOROVOD_YOLO_ENGINE", "auto")
    for argv, noted in (
        (["--engine", "torch"], "torch"),
        (["--engine=horovod"], "horovod"),
        (["x"], "horovod"),
    ):
        note_engine(argv)
        assert engine() == noted
    note_engine([])  # a command without a word
    note_engine(["--engine", "mpi"])  # for the parser to refuse, once the ranks can talk
    assert engine() == "auto"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (*LAUNCHERS, *STRANGERS):
        for name in (kind.rank_name, kind.size_name):
            monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_a_process_started_alone_needs_no_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)  # importing it raises ImportError
    monkeypatch.delitem(sys.modules, "horovod_yolo.distributed.horovod_backend", raising=False)
    assert isinstance(connect(), LocalCommunicator)


@pytest.mark.usefixtures("alone")
def test_several_ranks_without_horovod_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never several runs of one rank each, which would all write to the same folder."""
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.delitem(sys.modules, "horovod_yolo.distributed.horovod_backend", raising=False)
    for name, value in {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert isinstance(connect(), LocalCommunicator)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"launched on 2 ranks, but Horovod does not load .*install-horovod"):
        connect()


@pytest.mark.usefixtures("alone")
def test_a_folder_of_the_same_name_that_hides_horovod_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a download beside train.py: to build Horovod again would not help."""
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "horovod"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "horovod_yolo.distributed.horovod_backend", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for name, value in OPEN_MPI.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{tmp_path}/horovod: this folder hides Horovod. rename it"):
        connect()
    del sys.modules["horovod"]  # with what was there before it comes back at the end
