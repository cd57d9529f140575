"""Synchronised batch norm over ranks is torch's batch norm of all their images, whoever holds how many."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.sync_batchnorm import synchronise_batch_norm
from tests.helpers.tiny import running_statistics
from tests.helpers.world import run_world

from .test_sync_batchnorm import TOLERANCES, equal, images, pair

SHARES = [(6,), (3, 3), (1, 5), (6, 0), (0, 2, 4), (1, 0, 0, 5)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_ranks_together_are_torchs(shares: tuple[int, ...], dtype: torch.dtype) -> None:
    plain, _ = pair(5, dtype, 0)
    whole = [images((6, 5, 4, 3), dtype, seed, shift=2.0).requires_grad_() for seed in (1, 2)]
    weights = images((6, 5, 4, 3), dtype, 3)
    expected = copy.deepcopy(plain)
    outputs = [expected(x) for x in whole]
    torch.stack([(y * weights).sum() for y in outputs]).sum().backward()

    def job(comm: Communicator) -> tuple[list[Tensor], list[Tensor], nn.BatchNorm2d]:
        model = nn.Sequential(copy.deepcopy(plain))
        synchronise_batch_norm(model, comm)
        mine = [x.detach().split(shares)[comm.rank].clone().requires_grad_() for x in whole]
        results = [model(x) for x in mine]
        torch.stack([(y * weights.split(shares)[comm.rank]).sum() for y in results]).sum().backward()
        return results, [x.grad for x in mine if x.grad is not None], model[0]

    ranks = run_world(len(shares), job)
    for k in range(2):
        equal(torch.cat([results[k] for results, _, _ in ranks]), outputs[k], dtype)
        equal(torch.cat([gradients[k] for _, gradients, _ in ranks]), whole[k].grad, dtype)
    for name in ("weight", "bias"):
        gradients = [getattr(layer, name).grad for _, _, layer in ranks]
        equal(torch.stack(gradients).sum(0), getattr(expected, name).grad, dtype)
    for _, _, layer in ranks:
        assert torch.equal(running_statistics(layer), running_statistics(ranks[0][2])), "alike to the bit"
        equal(running_statistics(layer), running_statistics(expected), dtype)
        assert layer.num_batches_tracked == 2


def test_the_statistics_of_no_image_at_all_change_nothing_to_nan() -> None:
    def job(comm: Communicator) -> Tensor:
        model = nn.Sequential(nn.BatchNorm2d(2))
        synchronise_batch_norm(model, comm)
        model(torch.zeros(0, 2, 3, 3))
        return running_statistics(model)

    assert all(bool(statistics.isfinite().all()) for statistics in run_world(2, job))
