"""The blocks, where their shape alone does not say that they are right."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from horovod_yolo.models.blocks import C3, SPP, SPPF, Bottleneck, Conv


def test_sppf_equals_spp_with_windows_5_9_13() -> None:
    torch.manual_seed(0)
    fast, plain = SPPF(16, 24).eval(), SPP(16, 24).eval()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 16, 11, 17)
    torch.testing.assert_close(fast(x), plain(x))


def test_conv_is_convolution_norm_silu() -> None:
    block = Conv(3, 4, 6, 2, 2).eval()
    block.bn.running_mean.copy_(torch.arange(4.0))  # type: ignore[union-attr]
    block.bn.running_var.fill_(4.0)  # type: ignore[union-attr]
    x = torch.randn(1, 3, 8, 12)
    y = F.conv2d(x, block.conv.weight, stride=2, padding=2)
    y = (y - torch.arange(4.0).view(1, 4, 1, 1)) / (4.0 + 1e-3) ** 0.5
    assert y.shape == (1, 4, 4, 6)
    torch.testing.assert_close(block(x), y * y.sigmoid())


def test_bottleneck_adds_its_input_only_where_it_may() -> None:
    x = torch.randn(1, 8, 4, 4)
    with_shortcut, without = Bottleneck(8, 8).eval(), Bottleneck(8, 8, shortcut=False).eval()
    without.load_state_dict(with_shortcut.state_dict())
    torch.testing.assert_close(with_shortcut(x) - x, without(x))
    assert not Bottleneck(8, 16).add


def test_c3_sends_one_half_past_the_bottlenecks() -> None:
    block = C3(8, 8, 2).eval()
    x = torch.randn(1, 8, 4, 4)
    expected = block.cv3(torch.cat((block.m[1](block.m[0](block.cv1(x))), block.cv2(x)), dim=1))
    torch.testing.assert_close(block(x), expected)
    assert all(b.add for b in block.m)
    assert not any(b.add for b in C3(8, 8, 2, shortcut=False).m)
