"""Gradients in groups: what no pass, or not every pass, brings is added up all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from horovod_yolo.distributed.communicator import Communicator
from horovod_yolo.distributed.exact_sums import ExactExchange
from horovod_yolo.distributed.gradient_groups import grouped
from tests.helpers.world import run_world


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(8)) for _ in range(4)]


def test_groups_begin_with_the_last_and_keep_the_order_within() -> None:
    a, b, c, d = weights()
    found = grouped([a, b, c, d], 2 * 8 * 4)
    assert [[id(one) for one in group] for group in found] == [[id(c), id(d)], [id(a), id(b)]]


@pytest.mark.parametrize("group_mb", [0.0, 1.0])
def test_slices_and_passes_that_leave_weights_out(group_mb: float) -> None:
    """Two slices of two passes a rank: in turn weights have all four gradients, two, one, and none."""

    def job(comm: Communicator) -> list[float]:
        every, second, once, never = own = weights()
        exchange = ExactExchange(own, comm, group_mb=group_mb)
        while True:  # until the powers of two are known
            for one in own:
                one.grad = None
            exchange.expect(2, passes=2, of_all=4)
            for number in range(4):
                used = [every, *([second] if number > 1 else []), *([once] if number == 3 else [])]
                (torch.stack(used) * (number + 1)).sum().backward()
            if exchange.finish():
                break
        return [float(one.grad[0]) for one in (every, second, once, never) if one.grad is not None]

    expected = [2.0 * (1 + 2 + 3 + 4), 2.0 * (3 + 4), 2.0 * 4, 0.0]
    for hosts in ((2,), (1, 1)):  # over memory, and by messages
        assert run_world(2, job, hosts=hosts) == [expected] * 2


def test_a_small_model_has_thirds_and_a_large_one_what_is_asked_for() -> None:
    megabytes = [nn.Parameter(torch.empty(1 << 18)) for _ in range(9)]
    assert [len(group) for group in grouped(megabytes, 25 * 2**20)] == [3, 3, 3]
    assert [len(group) for group in grouped(megabytes, 2 * 2**20)] == [2, 2, 2, 2, 1]
    assert [len(group) for group in grouped(megabytes[:2], 25 * 2**20)] == [1, 1]
