"""The digest of tensors: a known value, every bit and place counts, groups and chunks do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from horovod_yolo.core import digest as module
from horovod_yolo.core.digest import digest, shown

WRAP = 1 << 64


def obvious(words: list[int]) -> int:
    """The same with Python's integers."""
    keys = [int(key) | 1 for key in np.random.Philox(key=17).random_raw(1 << 14)]

    def mixed_sum(values: list[int], factors: list[int]) -> int:
        total = 0
        for value, key in zip(values, factors, strict=False):
            product = value * key % WRAP
            high = (product - WRAP if product >> 63 else product) >> 32
            total += (product ^ high) % WRAP
        return total % WRAP

    chunks = [mixed_sum(words[at : at + len(keys)], keys) for at in range(0, len(words), len(keys))]
    return mixed_sum(chunks, keys[: len(chunks)][::-1])


def some(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 100, 1 << 14, (1 << 15) + 3])
def test_it_is_what_the_obvious_loop_gives(count: int) -> None:
    tensor = some(count)
    assert int(digest([tensor])) % WRAP == obvious(tensor.view(torch.int32).tolist())


def test_a_flipped_bit_anywhere_and_two_numbers_exchanged_are_seen() -> None:
    parts = [some(20_000), torch.tensor(7), some(48, 1).view(4, 3, 2, 2), some(5, 2).half()]
    seen = {int(digest(parts))}
    for number, part in enumerate(parts):
        words = part.view(torch.uint8) if part.dim() else part.view(1).view(torch.uint8)
        for place in (0, words.numel() // 2, words.numel() - 1):
            for bit in range(8):
                words.view(-1)[place] ^= 1 << bit
                seen.add(int(digest(parts)))
                words.view(-1)[place] ^= 1 << bit
        assert len(seen) == 1 + 24 * (number + 1)
    parts[0][[3, 17_000]] = parts[0][[17_000, 3]]
    assert int(digest(parts)) not in seen


def test_small_tensors_are_taken_together_and_large_models_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [some(70_000), some(3, 1), some(40_000, 2)]
    together = int(digest(parts))
    assert together == int(digest([torch.cat(parts)]))
    monkeypatch.setattr(module, "_GROUP", 70_000)
    assert [[len(part) for part in group] for group in module._groups(parts)] == [[70_000], [3, 40_000]]
    assert int(digest(parts)) == int(digest(parts)) != together  # of a group chunks begin anew


def test_channels_last_is_read_as_it_lies_in_memory() -> None:
    weights = some(4 * 3 * 5 * 5).view(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert int(digest([weights])) == int(digest([weights.permute(0, 2, 3, 1).contiguous()]))


def test_people_see_64_bits() -> None:
    assert (shown(0), shown(-1)) == ("0x0000000000000000", "0xffffffffffffffff")
