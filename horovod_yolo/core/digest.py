"""A number of 64 bits that tells what tensors hold, made where they are: on a device nobody waits for it.

Each 32 bits of a tensor are multiplied by a key that depends on their place, the product's halves are mixed,
and all is added up without regard to carries over 64 bits. Integers add up to the same in any order. Two
states of the same tensors have the same digest by a chance of about 2^-64; it is no protection against
somebody who looks for such states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 14  # words that have keys of their own; the products of so many stay in a processor's cache
_GROUP = 1 << 22  # words that are brought together at most, but for those of a larger tensor
_HALF = 32  # bits
_NARROW = {1: torch.uint8, 2: torch.int16}  # integers as wide as numbers of so many bytes


@torch.no_grad()
def digest(tensors: Iterable[Tensor]) -> Tensor:
    """() int64 of the bits and places of tensors of one device, which must be the same ones every time.

    Their order in memory counts: tensors in another memory format have another digest.
    """
    chunks = torch.cat([_sums(group) for group in _groups([tensor for tensor in tensors if tensor.numel()])])
    return _mixed_sum(chunks, _keys(chunks.device)[: chunks.numel()].flip(0))


def shown(value: int) -> str:
    """A digest for people and tables, in which it is no number that might be rounded."""
    return f"{value & (1 << 64) - 1:#018x}"


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors that are brought together, so that few kernels see many small ones."""
    group: list[Tensor] = []
    words = 0
    for tensor in tensors:
        if group and words + tensor.numel() > _GROUP:
            yield group
            group, words = [], 0
        group.append(tensor)
        words += tensor.numel()
    if group:
        yield group


def _sums(tensors: Sequence[Tensor]) -> Tensor:
    """(chunks,) int64 of each chunk of the tensors' words."""
    words = torch.cat([_words(tensor) for tensor in tensors])
    keys = _keys(words.device)
    whole = words.numel() // _CHUNK * _CHUNK
    rows = words[:whole].view(-1, _CHUNK)
    at_once = 1 if words.device.type == "cpu" else max(len(rows), 1)
    sums = [_mixed_sum(part, keys) for part in torch.split(rows, at_once)] if whole else []
    if whole < words.numel():
        sums.append(_mixed_sum(words[None, whole:], keys[: words.numel() - whole]))
    return torch.cat(sums)


def _mixed_sum(words: Tensor, keys: Tensor) -> Tensor:
    """(..., n) int32 or int64, (n,) -> (...) int64."""
    products = words * keys
    return products.bitwise_xor_(products >> _HALF).sum(dim=-1)


def _words(tensor: Tensor) -> Tensor:
    """(n,) int32: a tensor's bits in their order in memory."""
    if tensor.dim() == 4 and not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)  # to that of channels-last
    flat = tensor.detach().reshape(-1)
    return flat.view(_NARROW.get(flat.element_size(), torch.int32)).to(torch.int32)


@cache
def _keys(device: torch.device) -> Tensor:
    """(_CHUNK,) int64, odd: a product by one loses no bit."""
    raw = np.random.Philox(key=17).random_raw(_CHUNK)
    return torch.from_numpy(raw.view(np.int64) | 1).to(device)
