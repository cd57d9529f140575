"""The communicator of one rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from horovod_yolo.core.errors import UserError
from horovod_yolo.distributed import torch_backend
from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.local import LocalCommunicator
from tests.helpers.contract import check_contract


def test_one_rank_is_its_own_sum() -> None:
    comm: Communicator = LocalCommunicator()  # and mypy checks that it is one
    assert (comm.rank, comm.size, comm.local_rank, comm.local_size, comm.wait_s) == (0, 1, 0, 1, 0.0)
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(comm.allreduce_sum(value, "x").wait(), torch.tensor([1.0, 2.0]))
    check_contract(comm)
    comm.close()


def test_one_rank_steps_the_optimizer_it_has() -> None:
    model = nn.Linear(2, 1, bias=False)
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer, exchange = LocalCommunicator().exchange_gradients(
        plain, model.named_parameters(), wire=torch.float16, group_mb=1.0
    )
    assert optimizer is plain
    before = model.weight.detach().clone()
    exchange.expect(2)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
    exchange.finish()
    with exchange.stepping():
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 2)


def test_gloo_may_be_taken_where_nccl_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_backend.dist, "is_nccl_available", lambda: True)
    assert torch_backend.has_nccl()
    monkeypatch.setenv(torch_backend.NCCL, "0")
    assert not torch_backend.has_nccl()
    monkeypatch.setenv(torch_backend.NCCL, "no")
    with pytest.raises(UserError, match="HOROVOD_YOLO_NCCL"):
        torch_backend.has_nccl()
