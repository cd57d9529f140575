"""Synchronised batch norm of one rank is torch's batch norm; of several: see the next file."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.sync_batchnorm import (
    SyncBatchNorm2d,
    synchronise_batch_norm,
)

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-11}


def pair(channels: int, dtype: torch.dtype, seed: int) -> tuple[nn.BatchNorm2d, SyncBatchNorm2d]:
    """Torch's and ours with equal, arbitrary weights and running statistics."""
    rng = torch.Generator().manual_seed(seed)
    plain = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03).to(dtype)
    assert plain.running_mean is not None and plain.running_var is not None
    for tensor in (plain.weight.data, plain.bias.data, plain.running_mean):
        tensor.copy_(torch.randn(channels, generator=rng, dtype=torch.float64))
    plain.running_var.copy_(torch.rand(channels, generator=rng, dtype=torch.float64) + 0.1)
    return plain, SyncBatchNorm2d(copy.deepcopy(plain), LocalCommunicator(), "x")


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=rng, dtype=torch.float64) * 2 + shift).to(dtype)


def equal(a: Tensor | None, b: Tensor | None, dtype: torch.dtype, steepness: float = 1.0) -> None:
    assert a is not None and b is not None
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(steepness, 1.0))


@pytest.mark.parametrize("dtype", TOLERANCES)
@settings(max_examples=25)
@example(batch=1, channels=4, height=1, width=2, seed=337)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_one_rank_is_torchs(
    dtype: torch.dtype, batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    plain, ours = pair(channels, dtype, seed)
    for round_ in range(2):  # the second meets what the first left
        x = images((batch, channels, height, width), dtype, seed + round_, shift=3.0)
        weights = images(tuple(x.shape), dtype, seed + 100)
        results = []
        for layer in (plain, ours):
            own = x.clone().requires_grad_()
            y = layer(own)
            layer.zero_grad()
            (y * weights).sum().backward()
            results.append((y, own.grad, layer.weight.grad, layer.bias.grad))
        # Pixels that are nearly equal are drawn far apart, and both roundings with them.
        spread = (x.var(dim=(0, 2, 3), correction=0) + plain.eps).sqrt()
        steepness = float((plain.weight.detach().abs() / spread).max())
        for theirs, mine in zip(*results, strict=True):
            equal(mine, theirs, dtype, steepness)
    equal(ours.running_mean, plain.running_mean, dtype)
    equal(ours.running_var, plain.running_var, dtype)
    assert ours.num_batches_tracked == plain.num_batches_tracked == 2
    equal(ours.eval()(x), plain.eval()(x), dtype)


def test_gradients_against_differences() -> None:
    _, layer = pair(3, torch.float64, 5)
    x = images((2, 3, 2, 3), torch.float64, 1).requires_grad_()

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        layer.weight.data, layer.bias.data = weight.data, bias.data
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    weight, bias = (t.detach().clone().requires_grad_() for t in (layer.weight, layer.bias))
    assert torch.autograd.gradcheck(forward, (x, weight, bias))


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """The sum of squares travels in float64: float32 would lose a deviation of 1 beside a mean of 5000."""
    plain, ours = pair(2, torch.float32, 0)
    x = images((4, 2, 8, 8), torch.float32, 3, shift=5000.0)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_under_autocast(dtype: torch.dtype) -> None:
    plain, ours = pair(3, torch.float32, 2)
    x = images((4, 3, 5, 5), dtype, 4, shift=1.0)
    own = x.clone().requires_grad_()
    y = ours(own)
    assert y.dtype == dtype
    expected = plain(x.float())
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.05)
    y.float().square().sum().backward()
    assert own.grad is not None and own.grad.dtype == dtype and ours.weight.grad is not None
    assert ours.weight.grad.dtype == torch.float32


def test_no_images_give_zero_gradients() -> None:
    _, layer = pair(3, torch.float32, 0)
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None and x.grad.shape == x.shape
    for gradient in (layer.weight.grad, layer.bias.grad):
        assert gradient is not None and torch.equal(gradient, torch.zeros(3))
    assert all(bool(buffer.isfinite().all()) for buffer in layer.buffers())


def test_replacing_keeps_names_and_objects() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before = dict(model.state_dict(keep_vars=True))
    synchronise_batch_norm(model, LocalCommunicator())
    after = dict(model.state_dict(keep_vars=True))
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    layers = [module for module in model.modules() if isinstance(module, SyncBatchNorm2d)]
    assert len(layers) == 2 and len({layer._name for layer in layers}) == 2
    synchronise_batch_norm(model, LocalCommunicator())
    assert [module for module in model.modules() if isinstance(module, SyncBatchNorm2d)] == layers
