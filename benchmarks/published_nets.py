"""What `plan.py` takes from publications for Horovod's figures of 512 GPUs, written down before it compares.

Horovod's docs/benchmarks.rst: 128 servers with 4 Pascal GPUs each, RoCE of 25 Gbit/s, batch 64 of made-up
images, tf_cnn_benchmarks. It says 90 % for Inception V3 and ResNet-101, and 68 % for VGG-16. Nothing is
fitted.
"""

from __future__ import annotations

from typing import NamedTuple

from horovod_yolo.planner.links import Link, World
from horovod_yolo.planner.timeline import Compute, Group

PUBLISHED = {"Inception V3": 0.90, "ResNet-101": 0.90, "VGG-16": 0.68}
HOSTS, GPUS_A_HOST, IMAGES = 128, 4, 64

# One set of constants for all three nets.
ROCE_PAYLOAD = 1024 / (1024 + 82)  # RoCE v2 with its usual MTU of 1024, and its headers on Ethernet
NETWORK = Link(
    9.6e-6, 25e9 / 8 * ROCE_PAYLOAD
)  # NCCL 2.10, src/graph/tuning.cc: a ring's step over a network
PCI_EXPRESS = Link(5.7e-6, 12e9)  # the same file: over PCI Express; topo.h: 12 GB/s
WORLD = World(HOSTS, GPUS_A_HOST, NETWORK, PCI_EXPRESS)
ALGORITHM = "ring"  # NCCL has had trees since 2.4, of 2019
FUSION_BYTES = 64 * 2**20  # Horovod's default
FORWARD_SHARE = 1 / 3  # the backward pass has two products for each of the forward pass

# Images/s of one P100 with batch 64 and synthetic images: tensorflow.org, "Benchmarks", DGX-1, May 2017.
IMAGES_PER_S = {"Inception V3": 142.0, "VGG-16": 154.0}
RESNET_50_PER_S, RESNET_152_PER_S = 219.0, 91.8  # ResNet-101 lies between them, by its multiplications


class Layer(NamedTuple):
    """Of a net for ImageNet, in the order of the forward pass."""

    parameters: int
    multiplications: float


def conv(into: int, out: int, height: int, width: int, side: int, extra: int = 2) -> Layer:
    """A convolution whose map has ``side`` x ``side`` places, and ``extra`` numbers a channel: norm, bias."""
    weights = into * out * height * width
    return Layer(weights + extra * out, float(weights * side**2))


def linear(into: int, out: int) -> Layer:
    return Layer(into * out + out, float(into * out))


def vgg16() -> list[Layer]:
    """Simonyan and Zisserman, arXiv:1409.1556, D."""
    layers, into, side = [], 3, 224
    for out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(conv(into, out, 3, 3, side, extra=1))
            into = out
        side //= 2
    return [*layers, linear(512 * 7 * 7, 4096), linear(4096, 4096), linear(4096, 1000)]


def resnet(blocks: tuple[int, ...]) -> list[Layer]:
    """He et al., arXiv:1512.03385, with bottlenecks; stride in the 3 x 3, as in version 1.5."""
    layers, into, side = [conv(3, 64, 7, 7, 112)], 64, 56
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            before = side
            if stage and not block:
                side //= 2
            layers += [conv(into, width, 1, 1, before), conv(width, width, 3, 3, side)]
            layers.append(conv(width, 4 * width, 1, 1, side))
            if not block:
                layers.append(conv(into, 4 * width, 1, 1, side))
            into = 4 * width
    return [*layers, linear(2048, 1000)]


def inception_v3() -> list[Layer]:
    """Szegedy et al., arXiv:1512.00567, without the auxiliary classifier."""
    layers = [conv(3, 32, 3, 3, 149), conv(32, 32, 3, 3, 147), conv(32, 64, 3, 3, 147)]
    layers += [conv(64, 80, 1, 1, 73), conv(80, 192, 3, 3, 71)]
    for into, pool in ((192, 32), (256, 64), (288, 64)):
        layers += [conv(into, 64, 1, 1, 35), conv(into, 48, 1, 1, 35), conv(48, 64, 5, 5, 35)]
        layers += [conv(into, 64, 1, 1, 35), conv(64, 96, 3, 3, 35), conv(96, 96, 3, 3, 35)]
        layers.append(conv(into, pool, 1, 1, 35))
    layers += [
        conv(288, 384, 3, 3, 17),
        conv(288, 64, 1, 1, 35),
        conv(64, 96, 3, 3, 35),
        conv(96, 96, 3, 3, 17),
    ]
    for c in (128, 160, 160, 192):
        layers += [
            conv(768, 192, 1, 1, 17),
            conv(768, c, 1, 1, 17),
            conv(c, c, 1, 7, 17),
            conv(c, 192, 7, 1, 17),
        ]
        layers += [conv(768, c, 1, 1, 17), *[conv(c, c, 7, 1, 17)] * 3, conv(c, 192, 1, 7, 17)]
        layers.append(conv(768, 192, 1, 1, 17))
    layers += [conv(768, 192, 1, 1, 17), conv(192, 320, 3, 3, 8)]
    layers += [conv(768, 192, 1, 1, 17), *[conv(192, 192, 1, 7, 17)] * 2, conv(192, 192, 3, 3, 8)]
    for into in (1280, 2048):
        layers += [conv(into, 320, 1, 1, 8), conv(into, 384, 1, 1, 8), *[conv(384, 384, 1, 3, 8)] * 2]
        layers += [conv(into, 448, 1, 1, 8), conv(448, 384, 3, 3, 8), *[conv(384, 384, 1, 3, 8)] * 2]
        layers.append(conv(into, 192, 1, 1, 8))
    return [*layers, linear(2048, 1000)]


NETS = {"Inception V3": inception_v3(), "ResNet-101": resnet((3, 4, 23, 3)), "VGG-16": vgg16()}


def images_per_s(net: str) -> float:
    """Of one P100. The time of ResNet-101 is interpolated."""
    if net != "ResNet-101":
        return IMAGES_PER_S[net]
    small, large = (multiplications(resnet(blocks)) for blocks in ((3, 4, 6, 3), (3, 8, 36, 3)))
    share = (multiplications(NETS[net]) - small) / (large - small)
    return 1 / (1 / RESNET_50_PER_S + share * (1 / RESNET_152_PER_S - 1 / RESNET_50_PER_S))


def multiplications(layers: list[Layer]) -> float:
    return sum(layer.multiplications for layer in layers)


def compute(net: str) -> Compute:
    """A step of one GPU. The update of the weights is part of the backward pass's time here."""
    seconds = IMAGES / images_per_s(net)
    return Compute(seconds * FORWARD_SHARE, seconds * (1 - FORWARD_SHARE), 0.0)


def groups(net: str) -> list[Group]:
    """Gradients from the last layer to the first, in groups of up to Horovod's buffer; a larger one alone."""
    found: list[Group] = []
    done, size, total = 0.0, 0, multiplications(NETS[net])
    for layer in reversed(NETS[net]):
        new = 4 * layer.parameters
        if size and size + new > FUSION_BYTES:
            found.append(Group(size, done / total))
            size = 0
        size += new
        done += layer.multiplications
    return [*found, Group(size, done / total)]
