"""MuSGD: SGD in which matrices also move by an orthogonal step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SHARE_OF_ORTHOGONAL, SHARE_OF_SGD = 0.2, 1.0
# A quintic whose fifth iterate brings singular values from (0, 1] near 1 (Jordan et al., "Muon", 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class MuSGD(Optimizer):
    """SGD with Nesterov momentum, and for each matrix a step along its orthogonalised gradient before it.

    A matrix is a parameter with two dimensions, or a convolution's kernel with its outputs as rows. With the
    gradient g, the momentum mu, the learning rate eta and the decay lam:

    ``M <- mu M + (1 - mu) g``, ``theta <- theta - 0.2 eta orthogonal(mu M + (1 - mu) g)``

    and then, as for all parameters, with the theta that has moved:

    ``h = g + lam theta``, ``V <- mu V + h``, ``theta <- theta - eta (h + mu V)``

    The first is Muon (Jordan et al., 2024), mixed with a plain optimizer as in Liu et al., "Muon is Scalable
    for LLM Training", 2025. Gradients are the sums over ranks before the step begins, so that all ranks
    orthogonalise the same matrices and no part of it is exchanged.
    """

    def __init__(
        self, params: Any, lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for parameter in moved:
                self._prepare(parameter)
            matrices = [p for p in moved if is_matrix(p)]
            if matrices:
                self._move_orthogonally(matrices, group["lr"], group["momentum"])
            if moved:
                self._move_plainly(moved, group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _prepare(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            if is_matrix(parameter):
                state["matrix_momentum_buffer"] = torch.zeros_like(parameter)

    def _move_orthogonally(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        gradients = _gradients(parameters)
        averages = [self.state[p]["matrix_momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, averages, momentum)
        torch._foreach_add_(parameters, orthogonal(directions), alpha=-SHARE_OF_ORTHOGONAL * lr)

    def _move_plainly(self, parameters: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        slopes = torch._foreach_add(_gradients(parameters), parameters, alpha=decay)
        velocities = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, slopes)
        torch._foreach_add_(slopes, velocities, alpha=momentum)
        torch._foreach_add_(parameters, slopes, alpha=-SHARE_OF_SGD * lr)


def is_matrix(parameter: Tensor) -> bool:
    """Whether MuSGD orthogonalises its gradient: a linear layer's or a convolution's weight."""
    return parameter.ndim in (2, 4)


def orthogonal(gradients: Sequence[Tensor]) -> list[Tensor]:
    """For each gradient of two or four dimensions about the nearest matrix with orthonormal rows or columns.

    Matrices of one shape are computed together. The step is longer where a linear layer has more rows than
    columns; of a kernel's gradient these are its height and width.
    """
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    flat = [gradient.flatten(1) for gradient in gradients]
    for position, matrix in enumerate(flat):
        alike[matrix.shape, matrix.dtype, matrix.device].append(position)
    found = list(gradients)
    for positions in alike.values():
        for position, matrix in zip(positions, _newton_schulz([flat[i] for i in positions]), strict=True):
            gradient = gradients[position]
            rows, columns = gradient.shape[-2:]
            found[position] = matrix.view(gradient.shape) * max(1.0, rows / columns) ** 0.5
    return found


def _newton_schulz(matrices: Sequence[Tensor]) -> Tensor:
    """(n, rows, columns) of n matrices of one shape: singular values between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = torch.stack(list(matrices))
    given, tall = x.dtype, x.shape[1] > x.shape[2]
    x = _coarse(x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + EPS))
    if tall:
        x = x.mT
    for _ in range(ITERATIONS):
        squared = _coarse(x @ x.mT)
        x = _coarse(torch.baddbmm(x, _coarse(b * squared + c * squared @ squared), x, beta=a))
    return (x.mT if tall else x).to(given).contiguous()


def _coarse(x: Tensor) -> Tensor:
    """Rounded to bfloat16, which is enough here; float64 stays, for those who compare runs to a rounding.

    On a CPU rounded values stay float32. Products and sums are the same as on a GPU, which adds in float32
    too, and few CPUs have units for bfloat16: without them a step would take fifteen times as long.
    """
    if x.dtype == torch.float64:
        return x
    return x.bfloat16().float() if x.device.type == "cpu" else x.bfloat16()


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [gradient for p in parameters if (gradient := p.grad) is not None]
