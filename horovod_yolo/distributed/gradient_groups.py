"""Gradients travel in groups that are the same in every step and on every rank.

Which gradients share a message must not depend on timing: over three and more ranks the order of the
additions of floats would too, and a resumed run would not repeat the uninterrupted one to the bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from horovod_yolo.distributed.communicator import Messages, Pending

GROUPS = 3  # of a small model: one travels while the next one's gradients are computed
LEAST_BYTES = 1 << 20  # of such a group: each message costs the delay of the network once more


def grouped(parameters: Sequence[nn.Parameter], most_bytes: float) -> list[list[nn.Parameter]]:
    """Parameters in groups, in the order in which their gradients appear: the last layers' first.

    A group is full when it has ``most_bytes`` or, of a smaller model, a third of all. Within a group
    parameters are in the model's order.
    """
    all_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    group_bytes = min(most_bytes, max(all_bytes / GROUPS, LEAST_BYTES))
    groups: list[list[nn.Parameter]] = []
    room = 0.0
    for parameter in reversed(parameters):
        if room <= 0:
            groups.append([])
            room = group_bytes
        groups[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return [group[::-1] for group in groups]


class Group:
    """Gradients that travel as one message.

    Args:
        parameters: whose gradients they are.
        dtype: of the message.
        first: number of the first parameter among all; the others follow.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dtype: torch.dtype, first: int) -> None:
        self.parameters = parameters
        self.numbers = slice(first, first + len(parameters))
        count = sum(parameter.numel() for parameter in parameters)
        self.message = torch.zeros(count, dtype=dtype, device=parameters[0].device)
        self.fill_in(self.message, self.pieces(self.message))
        self.begin()

    def begin(self) -> None:
        """A step begins."""
        self.brought = [0] * len(self.parameters)  # backward passes of each parameter
        self.missing = len(self.parameters)  # that have not brought all of theirs
        self.coming: Pending | None = None
        self.forget()

    def forget(self) -> None:
        """Whatever gradients of this step are here."""
        self.waiting: dict[int, Tensor] = {}  # those of a slice that are whole, by their place
        self.filled = False  # whether the message has some

    def fill_in(self, outgoing: Tensor, places: list[Tensor]) -> None:
        """Gradients go into ``outgoing``, each into its place there."""
        self.outgoing, self.places = outgoing, places

    def pieces(self, message: Tensor) -> list[Tensor]:
        """Each parameter's part of a message, in its own layout in memory."""
        split = torch.split(message, [parameter.numel() for parameter in self.parameters])
        return [
            piece.as_strided(parameter.size(), parameter.stride(), piece.storage_offset())
            for piece, parameter in zip(split, self.parameters, strict=True)
        ]


class GroupedExchange(ABC):
    """Sends each group when its gradients are complete, and all groups before it are on their way.

    Args:
        parameters: all that get gradients, the same on every rank.
        messages: sums the groups over the ranks.
        group_mb: gradients travel in groups of at most about this size.
        dtype: in which they travel.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], messages: Messages, group_mb: float, dtype: torch.dtype
    ) -> None:
        self._messages = messages
        self._groups: list[Group] = []
        self._sent = self._passes = self._due = 0
        first = len(parameters)
        for members in grouped(parameters, group_mb * 2**20):
            first -= len(members)
            group = Group(members, dtype, first)
            self._groups.append(group)
            for place, parameter in enumerate(members):
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._note, group, place)
                )

    def _begin(self, slices: int, passes: int) -> None:
        """A step begins, of so many slices whose gradients are taken one by one."""
        self._sent, self._passes, self._due = 0, passes, slices * passes
        for group in self._groups:
            group.begin()

    def _note(self, group: Group, place: int, parameter: nn.Parameter) -> None:
        """Called by each backward pass for each parameter."""
        brought = group.brought[place] = group.brought[place] + 1
        if brought % self._passes:
            return
        self._wait(group, place, parameter)
        if brought == self._due:
            group.missing -= 1
        if len(group.waiting) == len(group.parameters):
            self._take(group)
            while self._sent < len(self._groups) and not self._groups[self._sent].missing:
                self._send()

    def _wait(self, group: Group, place: int, parameter: nn.Parameter) -> None:
        """Have a gradient of a slice wait for those of its group."""
        if place in group.waiting:  # of the slice before, which had no gradients for others
            self._take(group)
        assert parameter.grad is not None
        group.waiting[place], parameter.grad = parameter.grad, None

    @torch.no_grad()
    def _take(self, group: Group) -> None:
        """Put the gradients of a slice into the message. Those that nothing has brought are zero."""
        if group.waiting:
            gradients = [
                group.waiting[place] if place in group.waiting else torch.zeros_like(parameter)
                for place, parameter in enumerate(group.parameters)
            ]
            self._fill(group, gradients)
        elif not group.filled:
            group.outgoing.zero_()
            group.filled = True
        group.waiting = {}

    @abstractmethod
    def _fill(self, group: Group, gradients: list[Tensor]) -> None:
        """Put gradients, which may be overwritten, into a group's places, or add them where it is filled.

        It is filled then.
        """

    @abstractmethod
    def _give(self, group: Group) -> None:
        """Give the parameters what came back in the message."""

    def _send(self) -> None:
        self._groups[self._sent].coming = self._start(self._sent)
        self._sent += 1

    def _start(self, number: int) -> Pending:
        """Start to sum a group into its message."""
        return self._messages.sum_in_place(self._groups[number].message, f"gradients.{number}")

    def abandon(self) -> None:
        """See `GradientExchange`."""
        for group in self._groups[self._sent :]:
            group.forget()
            for parameter in group.parameters:
                parameter.grad = None
        self._send_rest()  # where the others do it, before all that follows

    def _send_rest(self) -> None:
        """Send the groups that are not complete."""
        for group in self._groups[self._sent :]:
            for place, parameter in enumerate(group.parameters):
                if parameter.grad is not None:  # not all passes of a slice came to it
                    self._wait(group, place, parameter)
            self._take(group)
            self._send()

    @torch.no_grad()
    def _receive(self) -> None:
        """Wait for all groups."""
        for group in self._groups:
            assert group.coming is not None, "_send() has started it"
            group.coming.wait()
            self._give(group)
