"""Hue, saturation and value: what the planes give is what the formulas of HSV say."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from horovod_yolo.data.colours import ColourChange, _absences, draw_colours


def by_the_formula(pixel: list[int], hue: float, saturation: float, value: float, turns: bool) -> list[float]:
    h, s, v = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
    h = (h + hue - 1 if turns else h * hue) % 1
    return [255 * level for level in colorsys.hsv_to_rgb(h, min(1.0, s * saturation), min(1.0, v * value))]


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(
    "factors", [(1.0, 1.0, 1.0), (1.015, 1.7, 1.4), (0.985, 0.3, 0.6), (1.3, 1.0, 1.0), (0.6, 1.2, 1.1)]
)
def test_colours_change_as_the_formula_says(factors: tuple[float, float, float], turns: bool) -> None:
    """To what 8 bits of hue, saturation and value allow: a step of hue is six levels of a pure colour."""
    hue, saturation, value = factors
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image[:4] = [[[0, 0, 0]], [[255, 255, 255]], [[255, 0, 0]], [[0, 0, 255]]]
    change = ColourChange(_absences(hue, turns), saturation, value)
    changed = change(image).reshape(-1, 3).astype(float)
    expected = np.array(
        [by_the_formula(p, hue, saturation, value, turns) for p in image.reshape(-1, 3).tolist()]
    )
    # Where the hue is multiplied, red of hue 0 and red of hue 1 part.
    seam = np.abs(changed - expected).max(1) > 8
    assert seam.mean() < (0.02 if turns or hue == 1 else 0.2)
    assert np.abs(changed - expected)[~seam].mean() < 1.2
    assert change.of_grey(100) == round(min(255.0, 100 * value))


def test_an_image_can_change_in_its_own_place() -> None:
    change = draw_colours(np.random.default_rng(3), (0.015, 0.7, 0.4), False)
    assert change is not None
    whole = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    expected = whole.copy()
    expected[10:30, 5:50] = change(whole[10:30, 5:50])
    part = whole[10:30, 5:50]
    assert np.shares_memory(change(part, part), whole)
    np.testing.assert_array_equal(whole, expected)


def test_no_strength_changes_nothing_but_draws_as_much() -> None:
    one, other = np.random.default_rng(0), np.random.default_rng(0)
    assert draw_colours(one, (0.0, 0.0, 0.0), False) is None
    assert draw_colours(other, (0.1, 0.0, 0.0), False) is not None
    assert one.random() == other.random()
