"""Strategies that make broken files from whole ones."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st

# Each property gets about four seconds of `make test`; `make fuzz` runs them over and over. The deadline, in
# milliseconds, is for what never ends: the worst input takes seconds of a core, which others may want too.
fuzzed = settings(max_examples=250, deadline=120_000)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A seed with up to eight pieces cut out, doubled, or replaced by bytes or by a token of the format."""
    data = draw(st.sampled_from(seeds))
    inserted = st.one_of(st.sampled_from(tokens), st.binary(max_size=8))
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        repeats = draw(st.sampled_from((1, 1, 1, 2, 50, 2000)))
        piece = draw(st.one_of(inserted, st.just(data[start:end])))
        data = data[:start] + piece * repeats + data[end:]
    return data
