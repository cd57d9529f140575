"""MuSGD against its formula, one parameter at a time, and against values of the published implementation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from horovod_yolo.training.musgd import MuSGD, is_matrix, orthogonal

REFERENCE = Path(__file__).resolve().parents[3] / "../shared/models/reference/musgd.npz"
SHAPES = [(5, 3), (3, 5), (6, 2, 3, 3), (6, 2, 3, 1), (6, 2, 1, 3), (8, 1, 3, 3), (40, 3, 1, 1), (6, 2, 3, 3)]


def random(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_singular_values(gradient: Tensor) -> Tensor:
    """The quintic iteration moves each singular value by itself and leaves the singular vectors alone."""
    u, values, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    rows, columns = gradient.shape[-2:]
    return (u @ values.diag() @ v).view(gradient.shape) * max(1, rows / columns) ** 0.5


def test_orthogonal_in_float64_is_the_iteration_on_singular_values() -> None:
    """Of many shapes at once, also two of one shape and tall kernels."""
    gradients = [random(shape, seed) for seed, shape in enumerate(SHAPES)]
    for found, gradient in zip(orthogonal(gradients), gradients, strict=True):
        torch.testing.assert_close(found, by_singular_values(gradient), rtol=1e-5, atol=1e-5)


def test_in_float32_it_is_rounded_to_bfloat16_on_the_way() -> None:
    gradients = [random(shape, seed) for seed, shape in enumerate(SHAPES)]
    for found, gradient in zip(orthogonal([g.float() for g in gradients]), gradients, strict=True):
        assert found.dtype == torch.float32
        off = (found - by_singular_values(gradient)).abs().max()
        assert 1e-4 < off < 4e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_becomes_nothing(dtype: torch.dtype) -> None:
    """A gradient of zeros, as a rank without objects may have, divides by no norm."""
    (found,) = orthogonal([torch.zeros(4, 3, 2, 2, dtype=dtype)])
    assert torch.equal(found, torch.zeros_like(found))


def obvious_steps(start: Tensor, slopes: Sequence[Tensor], lr: float, mu: float, decay: float) -> Tensor:
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for g in slopes:
        if start.ndim in (2, 4):
            m = mu * m + (1 - mu) * g
            theta = theta - 0.2 * lr * by_singular_values(mu * m + (1 - mu) * g)
        h = g + decay * theta
        v = mu * v + h
        theta = theta - lr * (h + mu * v)
    return theta


def test_steps_are_those_of_the_formula() -> None:
    shapes = [*SHAPES, (6,), (1,), (2, 3, 4)]  # the last three are no matrices
    starts = [random(shape, 10 + i) for i, shape in enumerate(shapes)]
    slopes = [[random(shape, 100 * n + i) for n in range(1, 5)] for i, shape in enumerate(shapes)]
    weights = [nn.Parameter(start.clone()) for start in starts]
    groups = [{"params": weights[::2]}, {"params": weights[1::2], "weight_decay": 0.3}]
    optimizer = MuSGD(groups, lr=0.1, momentum=0.8)
    for number in range(4):
        for weight, own in zip(weights, slopes, strict=True):
            weight.grad = own[number].clone()
        optimizer.step()
    for i, weight in enumerate(weights):
        expected = obvious_steps(starts[i], slopes[i], 0.1, 0.8, 0.3 if i % 2 else 0.0)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(weight.grad, slopes[i][3])  # type: ignore[arg-type]  # it is read, not used up


def test_what_has_no_gradient_stays() -> None:
    moved, still = nn.Parameter(random((3, 2), 0)), nn.Parameter(random((3, 2), 1))
    before = still.detach().clone()
    optimizer = MuSGD([moved, still], weight_decay=0.1)
    moved.grad = random((3, 2), 2)
    optimizer.step()
    assert torch.equal(still, before) and still not in optimizer.state


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"{REFERENCE} is not there: nothing to compare with")
def test_against_the_published_implementation() -> None:
    with np.load(REFERENCE) as file:
        given = {name: torch.from_numpy(file[name]) for name in file}
    names = [name.removesuffix("_start") for name in given if name.endswith("_start")]
    weights = {name: nn.Parameter(given[f"{name}_start"].clone()) for name in names}
    matrices = [name for name in names if is_matrix(weights[name])]
    assert sorted(set(names) - set(matrices)) == ["bias", "bn_weight"]
    groups = [
        {"params": [weights[name] for name in matrices], "weight_decay": float(given["weight_decay"])},
        {"params": [weights["bn_weight"], weights["bias"]]},
    ]
    optimizer = MuSGD(groups, lr=float(given["lr"]), momentum=float(given["momentum"]))
    for number in range(3):
        for name, weight in weights.items():
            weight.grad = given[f"{name}_grads"][number]
        optimizer.step()
        for name, weight in weights.items():
            expected, off = given[f"{name}_after_{number + 1}"], 2e-4 if name in matrices else 1e-7
            torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=off, msg=name)
