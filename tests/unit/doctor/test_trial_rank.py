"""Where a rank of the trial job sums: on a GPU only where that can work on all ranks."""

from __future__ import annotations

import pytest
import torch

from horovod_yolo.doctor.trial_rank import _device
from tests.helpers.world import WorldCommunicator, run_world


@pytest.mark.parametrize(
    ("gpus", "nccl", "expected"),
    [
        (1, True, ["cpu", "cpu"]),  # a host alone has two ranks: NCCL would refuse them on one GPU
        (1, False, ["cuda:0", "cuda:0"]),
        (2, True, ["cuda:0", "cuda:1"]),
        (0, False, ["cpu", "cpu"]),
    ],
)
def test_two_ranks_of_a_host_on_its_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, nccl: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)

    def device(comm: WorldCommunicator) -> str:
        comm.one_rank_a_gpu = nccl
        return str(_device(comm))

    assert run_world(2, device) == expected
