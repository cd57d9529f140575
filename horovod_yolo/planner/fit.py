"""Constants of the model from what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_LEAST, _MOST = 0.5, 3.0  # of a factor
_TRIED, _ROUNDS = 11, 4  # factors from least to most, and how often closer ones around the best
_SMALLEST = 1e-12  # no latency and no infinite bandwidth would make later divisions fail


@dataclass(frozen=True)
class Calibration:
    """How much longer things take in a step than by themselves: 1 where nothing was measured."""

    compute: float = 1.0  # caches, cores and memory are shared with the exchange
    network: float = 1.0  # copies; congestion windows that have shrunk meanwhile


def latency_and_slope(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """``a`` and ``b`` of seconds = a + b size, by least squares of the relative errors.

    Args:
        sizes: bytes, at least two different ones.
        seconds: above 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds, float)
    (a, b), *_ = np.linalg.lstsq(np.stack((1 / y, x / y), axis=1), np.ones_like(y), rcond=None)
    if a < 0:
        a, b = 0.0, float(np.sum(x / y) / np.sum((x / y) ** 2))
    if b < 0:
        a, b = float(np.sum(1 / y) / np.sum((1 / y) ** 2)), 0.0
    return max(float(a), _SMALLEST), max(float(b), _SMALLEST / x.max())


def calibrate(
    predicted: Callable[[Calibration], Sequence[float]],
    measured: Sequence[float],
    *,
    fits_compute: bool = True,
) -> Calibration:
    """The factors for which predictions come nearest to measurements: least squares of the relative errors.

    Args:
        predicted: seconds of each measured case, by the model with some factors.
        measured: seconds.
        fits_compute: from one case only one factor can be told, the network's.
    """
    actual = np.asarray(measured, float)

    def error(factors: Calibration) -> float:
        return float(np.square(np.asarray(predicted(factors)) / actual - 1).sum())

    best, width = Calibration(math.sqrt(_LEAST * _MOST), math.sqrt(_LEAST * _MOST)), math.log(_MOST / _LEAST)
    for _ in range(_ROUNDS):
        steps = np.exp(np.linspace(-width / 2, width / 2, _TRIED))
        computes = steps * best.compute if fits_compute else np.ones(1)
        tried = [Calibration(float(c), float(n)) for c in computes for n in steps * best.network]
        best = min(tried, key=error)
        width *= 3 / _TRIED
    return best
