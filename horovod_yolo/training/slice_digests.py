"""A digest of each slice's gradient of each tensor, before it is added to those of other slices.

With the sums being exact, it depends on the slice alone: not on who computed it, nor on what else that rank
had to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from horovod_yolo.core.digest import digest
from horovod_yolo.core.slices import Slices
from horovod_yolo.distributed.communicator import Communicator


class SliceDigests:
    """Those of the step under way.

    Make it before the exchange of gradients, whose hooks on the parameters must come after the ones here.

    Args:
        named_parameters: all that get gradients, the same on every rank.
        recorded: all slices of every step; else only those that are asked for.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], *, recorded: bool = True
    ) -> None:
        self.recorded = recorded
        named = dict(named_parameters)
        self.names = tuple(named)
        self._of = [*named.values()]
        self._table = torch.zeros(0, dtype=torch.int64)
        for k, parameter in enumerate(self._of):
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._note, k)
            )

    def begin(self, batches: int, slices: Slices, passes: int, asked: tuple[int, int] | None = None) -> None:
        """A step begins, of so many batches.

        Args:
            batches: of the window.
            slices: this rank's of each of them.
            passes: in which a slice goes through the network.
            asked: a batch and a slice, whose digests are wanted in any case.
        """
        self._slices, self._passes, self._asked = slices, passes, asked
        self._brought = [0] * len(self._of)
        shape = (batches, slices.count, len(self._of))
        self._table = torch.zeros(shape, dtype=torch.int64, device=self._of[0].device)

    def _note(self, k: int, parameter: nn.Parameter) -> None:
        """Called by each backward pass for each parameter."""
        self._brought[k] += 1
        here = len(self._slices)
        if self._brought[k] % self._passes or not here:
            return
        batch, own = divmod(self._brought[k] // self._passes - 1, here)
        place = batch, self._slices.first + own
        if self.recorded or self._asked == place:
            assert parameter.grad is not None
            self._table[(*place, k)] = digest([parameter.grad])

    def of(self, gradients: Iterable[Tensor | None]) -> list[int]:
        """What would stand in a slice's row for these gradients of all parameters; 0 for none."""
        found = []
        for parameter, gradient in zip(self._of, gradients, strict=True):
            if gradient is None:
                found.append(0)
            else:  # in the parameter's own layout, as `backward` leaves it
                found.append(int(digest([torch.empty_like(parameter).copy_(gradient)])))
        return found

    def row(self, batch: int, slice_: int) -> list[int]:
        """Those of one of this rank's slices."""
        found: list[int] = self._table[batch, slice_].tolist()
        return found

    def of_all_ranks(self, comm: Communicator) -> Tensor:
        """(batches * slices * tensors,) int64. *Collective.*"""
        return comm.allreduce_sum(self._table.flatten(), "slice digests").wait()
