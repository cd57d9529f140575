"""Real ranks keep the communicator's contract, over each network library."""

from __future__ import annotations

import pytest

from tests.helpers import ranks


@pytest.mark.parametrize(
    ("launcher", "size", "engine"),
    [("gloo", 3, "auto"), ("mpi", 2, "horovod"), ("torchrun", 3, "auto"), ("mpirun", 2, "torch")],
)
def test_the_contract_holds(launcher: str, size: int, engine: str) -> None:
    variables = {"HOROVOD_YOLO_ENGINE": engine}
    job = ranks.run(["-m", "tests.helpers.contract"], size, launcher, timeout=120, **variables)
    assert job.code == 0, job.output
    for rank in range(size):
        assert f"rank {rank} of {size}: the contract holds" in job.output
