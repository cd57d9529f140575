"""The network as compiled code: which passes go through it, and which as it is written (``--compile``).

What a pass computes, to the bit, may depend on its own size and on the settings, but not on what has passed
before: one rank's first slice is another rank's third. So code is made ahead of the first step, for sizes
that follow from the settings alone, and for nothing more later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from horovod_yolo.core.precision import Precision
from horovod_yolo.core.slices import Slices
from horovod_yolo.models.detector import Detector

MOST_SIZES = 64  # that the code of one module may be compiled for; PyTorch's own limit is 8
LEAST_CELLS = 2  # a side of the coarsest map that may vary: PyTorch compiles a side of one by itself


@dataclass(frozen=True)
class Sizes:
    """Of the passes that code is made for: those of a full batch, with the sides that images may have.

    Shorter passes, of an epoch's last batch, and empty slices go through the network as it is written.
    """

    images: frozenset[int]
    sides: tuple[int, int]  # height and width that code is made with, which decide how it is laid out
    stride: int  # of the coarsest map
    vary: bool  # whether sides may be others

    @classmethod
    def of(
        cls, batch: int, slices: int, passes: int, *, sides: tuple[int, int], stride: int, vary: bool
    ) -> Sizes:
        """Of a full batch in so many slices, each in so many passes."""
        ends = Slices.even(slices, 0, 1).places(batch)
        of_slices = {end - start for start, end in pairwise(ends)}
        images = {len(range(k, size, passes)) for size in of_slices for k in range(passes)}
        return cls(frozenset(images - {0}), sides, stride, vary)

    def __contains__(self, images: Tensor) -> bool:
        """Whether a pass of these images is one of them."""
        count, _, *sides = images.shape
        if count not in self.images:
            return False
        return min(sides) >= LEAST_CELLS * self.stride if self.vary else tuple(sides) == self.sides

    @property
    def name(self) -> str:
        """What code may have been laid out for: that for one size is found by its own size."""
        return "x".join(map(str, self.sides)) if self.vary else "fixed"

    def __str__(self) -> str:
        """For people: ``7 and 8 images of 640 x 640 px``."""
        height, width = self.sides
        counts = " and ".join(map(str, sorted(self.images)))
        return f"{counts} images of {'any size' if self.vary else f'{height} x {width} px'}"


class CompiledNetwork:
    """A detector's forward pass for training, and with it the way back.

    It has three parts, as the gradients of a part are there all at once: those of the head travel while the
    neck and the backbone go back. The detector itself stays what it is, and so does its state.

    Args:
        model: the detector.
        sizes: of the passes that are compiled.
        options: of PyTorch's compiler.
    """

    def __init__(self, model: Detector, sizes: Sizes, options: Mapping[str, Any]) -> None:
        self._model, self._sizes = model, sizes
        # Not dynamic: after a second size it would be made for any, by what came before.
        self._parts = [
            torch.compile(part, dynamic=False, options={**options})
            for part in (model.backbone, model.neck, model.head)
        ]

    def __call__(self, images: Tensor) -> Any:
        """(B, 3, H, W) in 0..1 -> the head's predictions. With a graph, also where nobody wants one.

        Without a graph the code would be another, and its bits too. What asks for none keeps no predictions.
        """
        if images not in self._sizes:
            return self._model(images)
        with torch.enable_grad(), torch.compiler.set_stance("fail_on_recompile"):
            return self._through(images)

    def _through(self, x: Any) -> Any:
        for part in self._parts:
            if self._sizes.vary:
                for one in tree_leaves(x):
                    torch._dynamo.mark_dynamic(one, (2, 3))
            x = part(x)
        return x

    def make(self, precision: Precision) -> list[Tensor]:
        """Compile, which takes minutes; for batch norms that are as in a step.

        Returns:
            What the code computes of some images that are always the same: predictions and gradients.

        Raises:
            RuntimeError: it cannot be compiled.
        """
        found: list[Tensor] = []
        with torch._dynamo.config.patch(recompile_limit=MOST_SIZES), torch.enable_grad():
            for count in sorted(self._sizes.images):
                images = _images(count, self._sizes.sides)
                self._there_and_back(images, precision)
                with torch.compiler.set_stance("fail_on_recompile"):  # else steps would not meet this code
                    found += self._there_and_back(images, precision)
        return found

    def _there_and_back(self, images: Tensor, precision: Precision) -> list[Tensor]:
        with precision.autocast():
            predictions = tree_leaves(self._through(precision.inputs(images)))
        total = torch.stack([one.float().square().mean() for one in predictions]).sum()
        gradients = torch.autograd.grad(total, self._model.trained, allow_unused=True)
        return [*(one.detach() for one in predictions), *(one for one in gradients if one is not None)]


def _images(count: int, sides: tuple[int, int]) -> Tensor:
    """Random pixels, always the same."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, *sides), generator=rng, dtype=torch.uint8)
