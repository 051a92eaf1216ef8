"""Muon that is as fast on a CPU as on a GPU.

torch.optim.Muon makes its matrices orthogonal in bfloat16 wherever they lie. Most CPUs multiply bfloat16 in software:
with AVX2 alone a product takes ten times as long as in float32, and the optimizer longer than the model. Here the
iteration runs in float32 on a CPU, in bfloat16 elsewhere; all else is torch's, its groups and its state included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon as TorchMuon
from torch.optim.optimizer import ParamsT

# Jordan et al., 2024, https://kellerjordan.github.io/posts/muon: the quintic whose slope at zero is steepest.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition U S V^T of `matrix`, roughly: singular values of 0.7 to 1.2.

    Args:
        matrix: [M, N], any floating dtype.

    Returns:
        [M, N], float32 on a CPU, bfloat16 elsewhere.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(TorchMuon):
    """torch.optim.Muon with Nesterov momentum and AdamW's step size (arXiv 2502.16982).

    Args:
        params: matrices, or groups of them.
        lr, momentum, weight_decay: torch's, decoupled decay.
    """

    def __init__(self, params: ParamsT, *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step by the gradients that the parameters hold; those without one stay."""
        assert closure is None, "the trainer computes its gradients itself"
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                update = orthogonalize(gradient.lerp(buffer, momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)
