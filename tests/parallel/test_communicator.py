"""Real ranks keep the communicator's contract, over each network library."""

from __future__ import annotations

import pytest

from tests.helpers import ranks


@pytest.mark.parametrize(("launcher", "size"), [("gloo", 3), ("mpi", 2)])
def test_the_contract_holds(launcher: str, size: int) -> None:
    job = ranks.run(["-m", "tests.helpers.contract"], size, launcher, timeout=120)
    assert job.code == 0, job.output
    for rank in range(size):
        assert f"rank {rank} of {size}: the contract holds" in job.output
