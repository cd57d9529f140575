"""Which device a rank takes, and that all take one of the same kind."""

from __future__ import annotations

import os
from pathlib import Path
from threading import current_thread
from types import SimpleNamespace

import pytest
import torch

from horovod_yolo.assembly.build import wire_type
from horovod_yolo.assembly.device import agreed_device, arithmetic, choose_device, choose_precision
from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed.horovod_backend import HorovodCommunicator
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.world import WorldCommunicator, run_world, world_outcomes


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cpu", 1) == torch.device("cpu")
    assert choose_device("", 1) == torch.device("cuda", 1)
    assert choose_device("2,3", 1) == torch.device("cuda", 3)
    assert choose_device("2", 1) == torch.device("cuda", 2), "shared with rank 0"
    assert choose_device("cuda:3", 0) == choose_device("3", 0) == torch.device("cuda", 3)
    assert choose_device("cuda", 1) == torch.device("cuda", 1)
    for wrong in ("cuda:7", "4", "cpu:1", "nn", "gpu", "0,x", "xpu"):
        with pytest.raises(UserError, match="--device"):
            choose_device(wrong, 0)
    assert chosen == [torch.device("cuda", index) for index in (1, 3, 2, 3, 3, 1)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("", 0) == torch.device("cpu")


def test_ranks_of_a_group_have_the_gpus_of_their_numbers_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight ranks of a host this is number five; in its group of two it is the second."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    of_mpi = {"RANK": "13", "SIZE": "16", "LOCAL_RANK": "5", "LOCAL_SIZE": "8"}
    for name, value in of_mpi.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    monkeypatch.setenv("PMIX_RANK", "13")
    found = run_world(2, lambda comm: agreed_device("", comm).index)
    assert found == [5, 5]


def give_gpus(monkeypatch: pytest.MonkeyPatch, of_ranks: dict[str, int]) -> None:
    """Pretend that each rank is alone on a host, named after it, where torch finds so many GPUs."""
    monkeypatch.setattr("socket.gethostname", lambda: f"host of {current_thread().name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: of_ranks[current_thread().name] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: of_ranks[current_thread().name])
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_a_host_whose_driver_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(comm: WorldCommunicator) -> torch.device:
        return agreed_device("", comm)

    alone = (1, 1, 1)
    give_gpus(monkeypatch, {"rank 0": 1, "rank 1": 0, "rank 2": 1})
    for error in world_outcomes(3, device, alone):
        assert isinstance(error, UserError)
        assert str(error).startswith(
            "no GPU can be used on host of rank 1, and host of rank 0, host of rank 2 would train on GPUs"
        )
    assert run_world(3, lambda comm: agreed_device("cpu", comm), alone) == [torch.device("cpu")] * 3
    for error in world_outcomes(3, lambda comm: agreed_device("0", comm), alone):
        assert "--device names GPU 0, this host has 0" in str(error) and "on rank 1 of 3" in str(error)
    give_gpus(monkeypatch, dict.fromkeys(("rank 0", "rank 1", "rank 2"), 1))
    assert run_world(3, device, alone) == [torch.device("cuda", 0)] * 3
    give_gpus(monkeypatch, dict.fromkeys(("rank 0", "rank 1", "rank 2"), 0))
    assert run_world(3, device, alone) == [torch.device("cpu")] * 3


def test_over_nccl_two_ranks_have_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by UUID: number 0 of two containers, or of a host with two names, may be one GPU or two."""

    def device(comm: WorldCommunicator) -> torch.device:
        comm.one_rank_a_gpu = nccl
        return agreed_device("", comm)

    everyone = {f"rank {rank}": 1 for rank in range(3)}
    give_gpus(monkeypatch, everyone)
    uuids = {"rank 0": "a", "rank 1": "b", "rank 2": "a"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuids[current_thread().name])
    )
    nccl = True
    for error in world_outcomes(3, device):
        assert isinstance(error, UserError)
        assert str(error).startswith("ranks 0, 2 on host of rank 0 would share a GPU, which NCCL cannot")
        assert "-np 2" in str(error) and "--device cpu" in str(error)
    uuids["rank 2"] = "c"
    assert run_world(3, device) == [torch.device("cuda", 0)] * 3, "one visible GPU a rank"
    nccl, uuids["rank 2"] = False, "a"
    assert run_world(3, device) == [torch.device("cuda", 0)] * 3


def test_a_gpu_that_torch_cannot_use_is_no_reason_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("horovod_yolo.assembly.device.GPU_FILE", tmp_path / "nvidia0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_device("", 0) == torch.device("cpu")
    (tmp_path / "nvidia0").touch()
    with pytest.raises(UserError, match=r"PyTorch cannot use.*--device cpu"):
        choose_device("", 0)
    assert choose_device("cpu", 0) == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("", 0) == torch.device("cpu")


def test_fp16_is_for_gpus() -> None:
    with pytest.raises(UserError, match=r"fp16 needs a GPU, this is a CPU. use --precision bf16 or fp32"):
        choose_precision("fp16", torch.device("cpu"))
    assert choose_precision("bf16", torch.device("cpu")).dtype == torch.bfloat16


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("auto", False), ("tf32", True)])
def test_tf32_is_what_is_asked_for_and_only_inside(precision: str, tf32: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    with arithmetic(precision):
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (tf32, tf32)
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.allow_tf32 == before


def test_deterministic_kernels_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(RuntimeError, match="as asked"), arithmetic("fp32", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise RuntimeError("as asked")
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(
    ("wanted", "scaled", "device", "expected"),
    [
        ("auto", True, "cuda", torch.float16),
        ("auto", False, "cuda", None),
        ("auto", True, "cpu", None),
        ("none", True, "cuda", None),
        ("fp16", False, "cuda", torch.float16),
        ("bf16", False, "cuda", torch.bfloat16),
    ],
)
def test_gradients_are_rounded_on_the_wire_where_a_scaler_guards_them(
    wanted: str, scaled: bool, device: str, expected: torch.dtype | None, caplog: pytest.LogCaptureFixture
) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    assert wire_type(wanted, scaler, torch.device(device), LocalCommunicator()) == expected
    assert bool(caplog.records) == (wanted == "fp16" and not scaled)


def test_horovod_sends_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = LocalCommunicator()
    monkeypatch.setattr(comm, "wire_types", HorovodCommunicator.wire_types)
    with pytest.raises(UserError, match=r"--compression bf16: Horovod does not send it. use --engine torch"):
        wire_type("bf16", torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"), comm)
