"""Gradients travel in groups that are the same in every step and on every rank.

Which gradients share a message must not depend on timing: over three and more ranks the order of the
additions would too, and a resumed run would not repeat the uninterrupted one to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def grouped(parameters: Sequence[nn.Parameter], group_bytes: float) -> list[list[nn.Parameter]]:
    """Parameters in the order in which their gradients appear, last layer first, in groups of a size."""
    groups: list[list[nn.Parameter]] = []
    room = 0.0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not groups or size > room:
            groups.append([])
            room = group_bytes
        groups[-1].append(parameter)
        room -= size
    return groups
