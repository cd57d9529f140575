"""Whether this process is one of several is read from the launcher's variables alone."""

from __future__ import annotations

import sys

import pytest

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.launched import (
    LAUNCHERS,
    STRANGERS,
    connect,
    first_here,
    launched_rank,
    ranks_here,
    refuse_strangers,
)
from horovod_yolo.distributed.local import LocalCommunicator

HOROVODRUN = {"HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_UNIVERSE_SIZE": "32"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMIX_RANK": "0"}
MPICH = {"PMI_RANK": "7", "PMI_SIZE": "8"}
SLURM_ALLOCATION = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
SLURM_TASK = {**SLURM_ALLOCATION, "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "PMIX_RANK": "5"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    assert set(names) <= set(environment)
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"PATH": "/bin", **SLURM_ALLOCATION}, None),  # `python train.py` inside salloc is alone
        (HOROVODRUN, (3, 4)),
        (OPEN_MPI, (0, 16)),
        (MPICH, (7, 8)),
        ({**OPEN_MPI, **HOROVODRUN}, (3, 4)),  # horovodrun started from inside an MPI job
        (SLURM_TASK, (5, 8)),
        ({**SLURM_TASK, **OPEN_MPI}, (0, 16)),  # mpirun starts its daemons with srun
        ({**OPEN_MPI, "OMPI_MCA_ess_base_jobid": "1175584769"}, (0, 16)),
        ({"HOROVOD_RANK": "3"}, None),
        ({"HOROVOD_RANK": "", "HOROVOD_SIZE": ""}, None),
        ({"HOROVOD_RANK": "-1", "HOROVOD_SIZE": "4"}, None),
        ({"HOROVOD_RANK": "x", "HOROVOD_SIZE": "4", **MPICH}, (7, 8)),
    ],
)
def test_rank_and_size(environment: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert launched_rank(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        TORCHRUN,
        {"OMPI_COMM_WORLD_SIZE": "16"},
        without(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK"),
        without(OPEN_MPI, "PMIX_RANK"),  # no server behind it: MPI_Init would make a job of one
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "16"},
        {**HOROVODRUN, "HOROVOD_RANK": "4"},
        {**HOROVODRUN, "HOROVOD_RANK": "٣"},
        {**HOROVODRUN, "HOROVOD_SIZE": "9" * 5000},
        without(SLURM_TASK, "PMIX_RANK"),  # srun --mpi=none, a batch script
        without(SLURM_TASK, "SLURM_STEP_ID"),
        {**SLURM_TASK, "SLURM_PROCID": "0"},
        {**SLURM_TASK, "SLURM_PROCID": "0", "PMIX_RANK": "0", "SLURM_NTASKS": "1"},
        {"PMIX_RANK": "0"},
    ],
)
def test_what_is_left_over_does_not_hijack_a_single_process(environment: dict[str, str]) -> None:
    assert launched_rank(environment) is None


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        (TORCHRUN, "rank 1 of 4 (RANK, WORLD_SIZE: torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0"}, "rank 0 of 2 (RANK, WORLD_SIZE"),
        (without(OPEN_MPI, "PMIX_RANK"), "rank 0 of 16 (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE"),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH2"),
        ({"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"}, "jsrun"),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, "Flux"),
        ({**without(SLURM_TASK, "PMIX_RANK"), "SLURM_STEP_NUM_TASKS": "8"}, "rank 5 of 8 (SLURM_PROCID"),
    ],
)
def test_several_processes_that_do_not_find_each_other_are_refused(
    environment: dict[str, str], names: str
) -> None:
    with pytest.raises(UserError) as raised:
        refuse_strangers(environment)
    assert names in str(raised.value) and "horovod-yolo launch --hosts localhost:" in str(raised.value)
    refuse_strangers({**environment, **HOROVODRUN})  # left over around a job of ours


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM_ALLOCATION,
        {**SLURM_ALLOCATION, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell
        {"WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "16"},
        SLURM_TASK,
        MPICH,
    ],
)
def test_a_process_alone_and_a_rank_of_ours_are_not(environment: dict[str, str]) -> None:
    refuse_strangers(environment)


def test_places_on_a_host() -> None:
    assert ranks_here({}) == 1 and ranks_here(HOROVODRUN) == 2
    assert ranks_here({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}) == 4
    assert first_here({}) and first_here(OPEN_MPI) and not first_here(HOROVODRUN) and not first_here(TORCHRUN)


@pytest.mark.usefixtures("alone")
def test_torchrun_is_told_how_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="each would train alone"):
        connect()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in (*LAUNCHERS, *(names for _, *names in STRANGERS)):
        for name in names:
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
    with pytest.raises(UserError, match=r"launched on 2 ranks, but Horovod does not load .*install_horovod"):
        connect()
