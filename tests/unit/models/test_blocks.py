"""The blocks, where their shape alone does not say that they are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from horovod_yolo.models.attention import C2PSA, Attention, PSABlock
from horovod_yolo.models.blocks import C3, SPP, SPPF, Bottleneck, C2f, Conv
from horovod_yolo.models.layer_table import Scale


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


def test_c2f_joins_what_each_block_gave() -> None:
    block = C2f(6, 8, 2, lambda hidden: Bottleneck(hidden, hidden, kernel=3)).eval()
    x = torch.randn(2, 6, 4, 5)
    first, second = block.cv1(x)[:, :4], block.cv1(x)[:, 4:]
    third = block.m[0](second)
    expected = block.cv2(torch.cat((first, second, third, block.m[1](third)), dim=1))
    torch.testing.assert_close(block(x), expected)
    assert block.m[0].cv1.conv.kernel_size == block.m[0].cv2.conv.kernel_size == (3, 3)


def test_sppf_with_a_residual_pools_what_was_not_activated() -> None:
    block = SPPF(8, 8, residual=True).eval()
    x = torch.randn(1, 8, 7, 9)
    pooled = [block.cv1.bn(block.cv1.conv(x))]
    for _ in range(3):
        pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
    torch.testing.assert_close(block(x), x + block.cv2(torch.cat(pooled, dim=1)))
    plain = SPPF(8, 8).eval()
    plain.load_state_dict(block.state_dict())
    assert not torch.allclose(plain(x), block(x))


def test_depthwise_convolution_without_activation() -> None:
    block = Conv(4, 4, 3, groups=4, activation=False).eval()
    x = torch.randn(1, 4, 5, 6)
    channels = [F.conv2d(x[:, i, None], block.conv.weight[i, None], padding=1) for i in range(4)]
    torch.testing.assert_close(block(x), torch.cat(channels, dim=1) / (1 + 1e-3) ** 0.5)


@pytest.mark.parametrize("channels", [32, 64, 128])
def test_attention_cell_by_cell(channels: int) -> None:
    """Queries, keys and values lie head by head."""
    torch.manual_seed(0)
    block, x = Attention(channels).double().eval(), torch.randn(2, channels, 2, 3, dtype=torch.float64)
    qkv = block.qkv(x).flatten(2)
    heads = max(channels // 64, 1)
    of_value = channels // heads
    of_key = of_value // 2
    seen, values = torch.zeros(2, channels, 6, dtype=torch.float64), []
    for head in range(heads):
        own = qkv[:, head * 2 * of_value : (head + 1) * 2 * of_value]
        query, key, value = own[:, :of_key], own[:, of_key : 2 * of_key], own[:, 2 * of_key :]
        values.append(value)
        for image in range(2):
            for cell in range(6):
                weight = torch.stack([query[image, :, cell] @ key[image, :, j] for j in range(6)])
                weight = (weight / of_key**0.5).exp() / (weight / of_key**0.5).exp().sum()
                seen[image, head * of_value : (head + 1) * of_value, cell] = value[image] @ weight
    position = block.pe(torch.cat(values, dim=1).view(2, channels, 2, 3))
    torch.testing.assert_close(block(x), block.proj(seen.view(2, channels, 2, 3) + position))
    assert block(x[:0]).shape == (0, channels, 2, 3)


def test_partial_attention_lets_the_first_half_pass() -> None:
    block, x = C2PSA(32, 2).eval(), torch.randn(1, 32, 3, 3)
    first, second = block.cv1(x).split(16, dim=1)
    torch.testing.assert_close(block(x), block.cv2(torch.cat((first, block.m(second)), dim=1)))
    inner = block.m[0]
    assert isinstance(inner, PSABlock) and not inner.ffn[1].activation
    attended = second + inner.attn(second)
    torch.testing.assert_close(inner(second), attended + inner.ffn(attended))


@pytest.mark.parametrize(
    ("scale", "wanted", "channels"),
    [
        (Scale(0.33, 0.25, 1024), 64, 16),
        (Scale(0.67, 0.75, 768), 1024, 576),
        (Scale(1.0, 1.25, 512), 1024, 640),
        (Scale(0.5, 1.5, 512), 64, 96),
    ],
)
def test_channels_of_a_scale(scale: Scale, wanted: int, channels: int) -> None:
    assert scale.channels(wanted) == channels


def test_repeats_of_a_scale() -> None:
    assert [Scale(0.33, 1, 1).repeats(n) for n in (1, 3, 6)] == [1, 1, 2]
    assert [Scale(0.67, 1, 1).repeats(n) for n in (1, 3, 6)] == [1, 2, 4]
    assert [Scale(0.5, 1, 1).repeats(n) for n in (1, 2)] == [1, 1]
