"""Convolutions of one weight take a faster kernel on CPUs, and are what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from horovod_yolo.families.zoo import build_model
from horovod_yolo.models.convolution import Conv2d
from horovod_yolo.models.fusing import fused


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (1, 1, 4), (3, 2, 1)])
@pytest.mark.parametrize("last", [False, True])
def test_it_is_torchs_own_but_for_rounding(kernel: int, stride: int, groups: int, last: bool) -> None:
    torch.manual_seed(0)
    ours = Conv2d(8, 12, kernel, stride, kernel // 2, groups=groups)
    theirs = nn.Conv2d(8, 12, kernel, stride, kernel // 2, groups=groups)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 8, 12, 16)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.square().sum().backward()
        found.append((y.detach(), given.grad, layer.weight.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_file_of_a_network_says_what_is_meant() -> None:
    traced = torch.jit.trace(Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    assert "_convolution" in str(traced.inlined_graph) and "value=2]" not in str(traced.inlined_graph)


@pytest.mark.parametrize("name", ["yolov5n", "yolo11n"])
def test_a_fused_network_predicts_the_same_and_has_no_batch_norm(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 3).double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    model(images)  # so that there are statistics
    model.eval()
    expected, without = model.head.decode(model(images)), fused(model)
    found = without.head.decode(without(images))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in without.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "the model stays as it is"
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-8, atol=1e-8)
