"""What each way of computing batch norm costs in training, and how far it is from float64.

    python benchmarks/batch_norm.py --batch 4 --img 640

Prints a table: relative error of the whole gradient of yolov5n, at its first step and after some steps of
training, and CPU-seconds of a forward and a backward pass on one thread. On a GPU (``--device cuda``) the
seconds are the GPU's.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from horovod_yolo.core.types import Targets
from horovod_yolo.distributed.local import LocalCommunicator
from horovod_yolo.distributed.sync_batchnorm import synchronise_batch_norm
from horovod_yolo.families.anchor_based.family import anchor_head
from horovod_yolo.families.zoo import build_model
from horovod_yolo.losses.anchor_based import AnchorCriterion, LossWeights
from horovod_yolo.losses.criterion import by_name, count
from horovod_yolo.models.batch_norm import BatchNorm2d
from horovod_yolo.models.detector import Detector


class ThroughNchw(nn.BatchNorm2d):
    """PyTorch's kernel for NCHW on both sides of a copy."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, channels last."""
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def replaced(kind: type[nn.BatchNorm2d]) -> Callable[[Detector], None]:
    def replace(model: Detector) -> None:
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.__class__ = kind

    return replace


WAYS: dict[str, tuple[Callable[[Detector], object], torch.memory_format]] = {
    "PyTorch's, channels last": (replaced(nn.BatchNorm2d), torch.channels_last),
    "PyTorch's, all NCHW": (replaced(nn.BatchNorm2d), torch.contiguous_format),
    "PyTorch's, NCHW for batch norm only": (replaced(ThroughNchw), torch.channels_last),
    "ours, channels last (the default)": (lambda model: None, torch.channels_last),
    "ours, all NCHW": (lambda model: None, torch.contiguous_format),
    "`--sync-bn`, channels last": (
        lambda model: synchronise_batch_norm(model, LocalCommunicator()),
        torch.channels_last,
    ),
}


class Scene:
    """Smooth pictures with a little noise, and eight boxes on each."""

    def __init__(self, batch: int, side: int, device: str) -> None:
        rng = torch.Generator().manual_seed(0)
        smooth = torch.rand(batch, 3, side // 16, side // 16, generator=rng)
        images = nn.functional.interpolate(smooth, (side, side), mode="bilinear")
        noise = 0.05 * torch.rand(images.shape, generator=rng)
        self.images = (images + noise).clamp(0, 1).to(device)
        boxes = torch.rand(8 * batch, 4, generator=rng) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.1
        image, classes = (
            torch.arange(batch).repeat_interleave(8),
            torch.randint(10, (8 * batch,), generator=rng),
        )
        self.targets = Targets(image, classes, boxes)

    def gradient(self, model: Detector, layout: torch.memory_format) -> tuple[Tensor, float]:
        """Of all parameters as one float64 vector, and the seconds that it took."""
        images = self.images.to(next(model.parameters())).contiguous(memory_format=layout)
        height, width = images.shape[2:]
        loss = AnchorCriterion(LossWeights(), anchor_head(model))
        matches = loss.match(self.targets, (height, width))
        totals = by_name(loss, count(loss, [matches], len(images)))
        model.train().zero_grad()
        begun = self._clock()
        loss(model(images), matches, totals).total.backward()
        seconds = self._clock() - begun
        return torch.cat(
            [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        ), seconds

    def _clock(self) -> float:
        if self.images.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--img", type=int, default=640)
    parser.add_argument("--steps", type=int, default=10, help="of training before the second column")
    parser.add_argument("--repeats", type=int, default=3, help="the quickest counts")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    scene, small = (
        Scene(options.batch, options.img, options.device),
        Scene(options.batch, 160, options.device),
    )
    torch.manual_seed(0)
    model = build_model("yolov5n", 10).to(options.device)
    errors, seconds = [], dict.fromkeys(WAYS, float("inf"))
    errors.append(errors_of(model, scene, options.repeats, seconds))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(options.steps):
        small.gradient(model, torch.contiguous_format)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    errors.append(errors_of(model, scene, 1, seconds))
    print(f"yolov5n, {options.batch} x {options.img} px, torch {torch.__version__}, {options.device}\n")
    print("| batch norm | error, first step | error, trained weights | seconds |\n|---|---|---|---|")
    for way in WAYS:
        print(f"| {way} | {errors[0][way]:.1e} | {errors[1][way]:.1e} | {seconds[way]:.2f} |")


def errors_of(model: Detector, scene: Scene, repeats: int, seconds: dict[str, float]) -> dict[str, float]:
    """Relative error of each way, in ``repeats`` rounds; lowers ``seconds``."""
    exact, _ = scene.gradient(copy.deepcopy(model).double(), torch.contiguous_format)
    errors = {}
    for _ in range(repeats):
        for way, (change, layout) in WAYS.items():
            changed = copy.deepcopy(model)
            change(changed)
            found, took = scene.gradient(changed, layout)
            errors[way] = float((found - exact).norm() / exact.norm())
            seconds[way] = min(seconds[way], took)
    return errors


if __name__ == "__main__":
    main()
