"""One step in time: gradients leave while the backward pass still runs, one group after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SMALL_BYTES = 64.0  # of a sum of a few numbers


@dataclass(frozen=True)
class Group:
    """Gradients that travel as one message."""

    size: float  # bytes on the wire
    ready: float  # share of the backward pass after which its last gradient is there, 0 to 1


@dataclass(frozen=True)
class Compute:
    """Seconds of a rank in a step, without other ranks."""

    forward_s: float  # network, loss and matching
    backward_s: float
    update_s: float  # clipping, optimizer

    @property
    def step_s(self) -> float:
        """All of it."""
        return self.forward_s + self.backward_s + self.update_s

    def scaled(self, times: float) -> Compute:
        """So many times as long."""
        return Compute(self.forward_s * times, self.backward_s * times, self.update_s * times)


@dataclass(frozen=True)
class StepTime:
    """What a step takes."""

    step_s: float
    network_s: float  # all gradient messages, one after the other
    exposed_s: float  # what the network adds to the step: not hidden by the backward pass


def step_time(
    compute: Compute,
    groups: Sequence[Group],
    allreduce: Callable[[float], float],
    *,
    small_sums: int = 0,
    small_s: float | None = None,
) -> StepTime:
    """A step of all ranks.

    Args:
        compute: of each rank.
        groups: in the order in which they leave.
        allreduce: seconds for so many bytes.
        small_sums: sums of a few numbers that all ranks wait for (losses, batch norm).
        small_s: seconds of each of these; None where they travel as gradients do.
    """
    end = network = 0.0  # from the start of the backward pass
    for group in groups:
        seconds = allreduce(group.size)
        end = max(end, group.ready * compute.backward_s) + seconds
        network += seconds
    waited = small_sums * (allreduce(SMALL_BYTES) if small_s is None else small_s)
    exposed = max(end - compute.backward_s, 0.0) + waited
    return StepTime(compute.step_s + exposed, network + waited, exposed)
