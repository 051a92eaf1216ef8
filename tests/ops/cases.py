"""Inputs for the operators' tests, and the comparisons that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Precision(NamedTuple):
    """What a test asks for where it names no dtype of its own."""

    dtype: torch.dtype
    tolerance: float


PRECISION = {
    "reference": Precision(torch.float64, 0.0),
    "cpu": Precision(torch.float32, 2e-5),
    "triton": Precision(torch.float32, 2e-5),
}
current = PRECISION["reference"]
"""That of the engine under test; `conftest.py` sets it."""

CHUNKS = {
    "one query at a time": {"slab_elements": 1},
    "a few queries, keys in place": {"slab_elements": 130, "GATHER_PAYS": 1 << 30},
    "a few queries, keys gathered": {"slab_elements": 130, "GATHER_PAYS": 0},
    "all at once": {"slab_elements": 1 << 20},
}
"""Settings of `inazuma.ops.reference` that lead small inputs through each of its ways."""


class Inputs(NamedTuple):
    """What `dsa` takes, in its order."""

    q: Tensor
    k: Tensor
    v: Tensor
    index_q: Tensor
    index_k: Tensor
    index_w: Tensor

    @property
    def attention(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v

    @property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.index_q, self.index_k, self.index_w

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(*(change(x) for x in self))

    def leaves(self) -> Inputs:
        """The same values as leaves of a fresh graph."""
        return self.map(lambda x: x.detach().clone().requires_grad_())


def make_inputs(
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 5,
    keys: int = 7,
    heads: int = 4,
    groups: int = 2,
    width: int = 3,
    value_width: int = 2,
    index_heads: int = 2,
    index_width: int = 3,
    dtype: torch.dtype | None = None,
    largest_integer: int | None = None,
) -> Inputs:
    """Normal values, or whole numbers up to `largest_integer` in size: their scores are exact in float32, and tie."""
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or current.dtype

    def draw(*shape: int) -> Tensor:
        if largest_integer is None:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return torch.randint(-largest_integer, largest_integer + 1, shape, generator=generator).to(dtype)

    return Inputs(
        draw(batch, queries, heads, width),
        draw(batch, keys, groups, width),
        draw(batch, keys, groups, value_width),
        draw(batch, queries, index_heads, index_width),
        draw(batch, keys, index_width),
        draw(batch, queries, index_heads),
    )


def span(*rows: Sequence[int]) -> Tensor:
    """One end of the spans, int32 [B, T], a row for each batch entry."""
    return torch.tensor(rows, dtype=torch.int32)


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 100) -> list[Tensor]:
    """Vector-Jacobian products for cotangents drawn from `seed`; zeros for an input that is not reached.

    The graph is freed, as in training. Outputs without a gradient (lse, where only v needs one) are passed over.
    """
    generator = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outputs]
    reached = [i for i, x in enumerate(outputs) if x.requires_grad]
    outputs, cotangents = [outputs[i] for i in reached], [cotangents[i] for i in reached]
    return list(torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True, materialize_grads=True))


def reaches(output: Tensor, source: Tensor) -> bool:
    """Whether any gradient flows from `output` to `source`."""
    if not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(output.sum(), [source], retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.any())


def assert_close(
    actual: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor], tolerance: float = 1e-9
) -> None:
    """Equal in shape and, to an absolute and relative `tolerance`, in value; infinities match, NaN matches nothing.

    A tolerance below what the engine under test can keep is raised to that.
    """
    tolerance = max(tolerance, current.tolerance)
    if isinstance(actual, Tensor):
        actual, expected = [actual], [expected]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), rtol=tolerance, atol=tolerance)
