"""``--compile``: what it needs, who compiles when, and where the code lies. Whole runs: tests/parallel."""

from __future__ import annotations

import logging
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from horovod_yolo.assembly import compiling
from horovod_yolo.assembly.compiling import (
    _code_in,
    _folder,
    _options,
    compiler_of,
    in_turns,
    require_compiler,
)
from horovod_yolo.assembly.resuming import settings_here
from horovod_yolo.assembly.same_bits import kind_of
from horovod_yolo.config.schema import TrainConfig, to_dict
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import WorldCommunicator, run_world, world_outcomes

COMPILES = TrainConfig(data="data.yaml", cfg="yolov5n", compile=True, device="cpu")
CPU = torch.device("cpu")


def test_this_host_compiles_and_names_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TORCHINDUCTOR_")]:
        monkeypatch.delenv(name)
    require_compiler(COMPILES, LocalCommunicator())
    assert compiler_of(CPU).startswith("g++")
    assert "compiler" not in kind_of(CPU, portable=False)
    assert kind_of(CPU, portable=False, compiles=True)["compiler"] == compiler_of(CPU)
    monkeypatch.setenv("TORCHINDUCTOR_FREEZING", "1")
    assert kind_of(CPU, portable=False, compiles=True)["compiler"].endswith(" TORCHINDUCTOR_FREEZING=1")


@pytest.mark.parametrize(
    ("device", "variables", "what"),
    [
        ("cpu", {"CXX": "no-such-compiler"}, "there is no no-such-compiler.*name another compiler in CXX"),
        ("cpu", {"PATH": "/nowhere"}, "there is no g\\+\\+.*apt-get install"),
        ("0", {}, "GPUs need the package triton.*pip install triton"),
    ],
)
def test_what_is_missing_is_said(
    device: str, variables: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling, "_triton", str)  # as where it is not installed
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"--compile on .*: {what}.*or leave --compile out"):
        require_compiler(replace(COMPILES, device=device), LocalCommunicator())
    require_compiler(replace(COMPILES, device=device, compile=False), LocalCommunicator())


def test_python_without_headers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match=r"Python\.h.*python3-dev"):
        require_compiler(COMPILES, LocalCommunicator())


@pytest.mark.parametrize(
    ("flags", "other"), [({"sync_bn": True}, "--sync-bn"), ({"portable_bits": True}, "--portable-bits")]
)
def test_flags_that_exclude_it(flags: dict[str, Any], other: str) -> None:
    with pytest.raises(UserError, match=f"--compile and {other} exclude each other"):
        replace(COMPILES, **flags)


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_keeps_it(before: bool) -> None:
    """Its bits depend on it."""
    state = {"config": to_dict(replace(COMPILES, compile=before)), "scaler": {}, "model_name": "yolov5n"}
    assert settings_here(state, {})["compile"] is before
    if before:
        assert settings_here(state, {"compile": True})["compile"]
    else:
        with pytest.raises(UserError, match="--compile True differs from the run's False"):
            settings_here(state, {"compile": True})


def test_kernels_are_not_chosen_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever variables say; and code is made for as many threads as the rank has."""
    options = _options(COMPILES, CPU, LocalCommunicator())
    assert not any(options[f"max_autotune{which}"] for which in ("", "_pointwise", "_gemm"))
    assert options["cpp.threads"] == torch.get_num_threads()
    assert "deterministic" not in options
    on_gpu = replace(COMPILES, deterministic=True)
    assert _options(on_gpu, torch.device("cuda"), LocalCommunicator())["deterministic"] is True


def test_code_lies_where_nobody_else_can_put_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiling.FOLDER, raising=False)
    monkeypatch.setattr(compiling, "STATED", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    usual = _folder("")
    assert usual == tmp_path / "cache" / "horovod_yolo" / "compiled"
    assert stat.S_IMODE(usual.stat().st_mode) == 0o700
    named = _folder(str(tmp_path / "named"))
    assert named.parent == tmp_path / "named" and named.is_dir()
    with _code_in(usual / "fixed"):
        assert os.environ[compiling.FOLDER] == str(usual / "fixed")
    assert compiling.FOLDER not in os.environ
    monkeypatch.setenv(compiling.FOLDER, "/by/torch")
    monkeypatch.setattr(compiling, "STATED", "/stated")
    assert _folder("") == Path("/stated")
    with _code_in(Path("/stated/fixed")):
        assert os.environ[compiling.FOLDER] == "/stated/fixed"
    assert os.environ[compiling.FOLDER] == "/by/torch"


def test_a_folder_that_cannot_be_made_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "STATED", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used for compiled code.*--cache-dir"):
        _folder(str(tmp_path / "file"))


def test_the_first_rank_of_each_host_compiles_before_the_others() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def job(comm: Communicator) -> float:
        def work() -> list[Tensor]:
            begun.append(comm.rank)
            if comm.local_rank > 0:
                assert {0, 3} <= set(ended)  # of both hosts
            time.sleep(0.02)
            ended.append(comm.rank)
            return [torch.full((1,), float(comm.rank))]

        return float(in_turns(comm, work)[0])

    assert run_world(5, job, hosts=(3, 2)) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sorted(begun[:2]) == [0, 3] and sorted(ended) == [0, 1, 2, 3, 4]


def test_ranks_meet_while_one_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits longer than Horovod's stall check allows would count as late."""
    monkeypatch.setattr(compiling, "SECONDS_BETWEEN_MEETINGS", 0.02)

    def job(comm: WorldCommunicator) -> int:
        before = len(comm.calls)
        in_turns(comm, lambda: [torch.zeros(1)] if comm.rank else [torch.zeros(1)] * (time.sleep(0.3) or 1))
        return len(comm.calls) - before

    assert min(run_world(2, job, hosts=(1, 1))) >= 8


def test_a_failure_of_one_rank_ends_all_alike(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def job(comm: Communicator, error: Exception) -> list[Tensor]:
        def work() -> list[Tensor]:
            if comm.rank == 1:
                raise error
            return []

        return in_turns(comm, work)

    said = RuntimeError("backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand: g++ ...")
    outcomes = world_outcomes(3, lambda comm: job(comm, said))
    for outcome in outcomes:
        assert isinstance(outcome, UserError) and "\n" not in str(outcome)
        assert "backend='inductor' raised: CppCompileError: C++ compile error" in str(outcome)
        assert "on rank 1 of 3" in str(outcome)
    lack = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    for outcome in world_outcomes(3, lambda comm: job(comm, lack)):
        assert isinstance(outcome, UserError) and "smaller --micro-batch" in str(outcome)
    fault = world_outcomes(3, lambda comm: job(comm, TypeError("ours")))[1]
    assert isinstance(fault, TypeError)
