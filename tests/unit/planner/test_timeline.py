"""A step with gradients that leave during the backward pass."""

from __future__ import annotations

import pytest

from horovod_yolo.planner.timeline import Compute, Group, step_time

COMPUTE = Compute(forward_s=1.0, backward_s=2.0, update_s=0.5)


def test_what_fits_into_the_backward_pass_is_hidden_but_for_the_last_group() -> None:
    found = step_time(COMPUTE, [Group(1, 0.5), Group(1, 1.0)], lambda size: 0.25)
    assert found.step_s == pytest.approx(3.5 + 0.25)
    assert (found.network_s, found.exposed_s) == (pytest.approx(0.5), pytest.approx(0.25))


def test_groups_wait_for_the_one_before() -> None:
    found = step_time(COMPUTE, [Group(3, 0.1), Group(1, 0.2), Group(1, 1.0)], lambda size: size)
    assert found.exposed_s == pytest.approx(0.2 + 3 + 1 + 1 - 2)


def test_small_sums_are_waited_for() -> None:
    found = step_time(COMPUTE, [], lambda size: 0.01, small_sums=114)
    assert found.step_s == pytest.approx(3.5 + 1.14)


def test_small_sums_may_take_a_shorter_way() -> None:
    found = step_time(COMPUTE, [Group(1, 1.0)], lambda size: 0.5, small_sums=100, small_s=0.001)
    assert (found.step_s, found.network_s) == (pytest.approx(3.5 + 0.6), pytest.approx(0.6))


def test_without_a_network_only_computation_is_left() -> None:
    assert step_time(COMPUTE, [Group(1e9, 1.0)], lambda size: 0.0, small_sums=3).step_s == 3.5
