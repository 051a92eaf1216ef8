"""What is measured: the operators, how they are called, and how much arithmetic and memory traffic they ask for.

Work is what the definition of an operator needs, whatever an engine does: the products of matrices (a multiply-add is
2 FLOP), and the bytes that have to move when nothing stays in a cache but one tile. With P visible and K kept pairs of
a query and a key, and letters as in `inazuma.ops.contract`, per pair:

    index score             2 I C
    attention forward       2 H (Dk + Dv)              scores, then the weighted sum
    attention backward      2 H (3 Dk + 2 Dv)          five products: scores again, dP, dQ, dK, dV
    indexer's target        2 H Dk                     the attention's scores again
    indexer backward        6 I C                      three products: scores again, dq, dk

For DeepSeek-V3.2 (H = 128, I = 64, C = 128) these are the usual counts: 16,384 FLOP a pair of the indexer, 0.570 and
1.44 GFLOP a query for attention over 2,048 keys of width 576 / 512; the backward count is that of FlashAttention
(Dao, arXiv 2307.08691, section 4.1). Softmax, ReLU and selection itself are not counted.

PyTorch's dense attention gets as many heads of keys and values as of queries, in the layout that suits it best.
Every tensor is read or written once a pass, the backward pass reading its inputs again; where an operator follows
indices, the rows of keys and values are read once a kept pair, for one query shares its rows with no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inazuma.ops import dense_attention, dsa, index_loss, select_tokens, sparse_attention

Pass = Literal["forward", "training"]
"""Without gradients; or forward and backward together, because engines differ in which of them does the work."""
PASSES: tuple[Pass, ...] = ("forward", "training")

Call = Callable[[], list[Tensor]]
"""Runs once and returns everything it made: outputs and gradients."""

DENSE = "dense SDPA"


@dataclass(frozen=True)
class Shape:
    """The sizes of all tensors but their length; letters as in `inazuma.ops.contract`. D is both Dk and Dv."""

    B: int = 1
    H: int = 8
    D: int = 64
    G: int = 1
    I: int = 4  # noqa: E741  (the design's letter for index heads)
    C: int = 32
    k: int = 512


class Work(NamedTuple):
    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


def work(operator: str, kind: Pass, length: int, shape: Shape, itemsize: int) -> Work:
    """The work of one call over `length` causal tokens, for elements of `itemsize` bytes."""
    B, H, D, G, I, C, k = vars(shape).values()  # noqa: E741
    if operator == "dsa":
        parts = ["select_tokens", "sparse_attention"] + (["index_loss"] if kind == "training" else [])
        first, *others = (work(part, kind, length, shape, itemsize) for part in parts)
        return sum(others, start=first)

    tokens, shorter = B * length, min(length, k)
    visible = B * length * (length + 1) // 2
    kept = B * (shorter * (shorter + 1) // 2 + (length - shorter) * k)
    q = tokens * H * D * itemsize  # as large as the output
    key, index_key = tokens * G * D * itemsize, tokens * C * itemsize
    index_q, index_w = tokens * I * C * itemsize, tokens * I * 4
    lse, indices = tokens * H * 4, tokens * k * 4
    row, index_row = G * D * itemsize, C * itemsize

    if operator == "select_tokens":
        return Work(visible * 2 * I * C, index_q + index_key + index_w + indices)
    if operator in ("sparse_attention", "dense_attention", DENSE):
        sparse = operator == "sparse_attention"
        pairs = kept if sparse else visible
        if operator == DENSE:
            key = q  # it is given keys and values repeated for every head
        keys = kept * 2 * row + indices if sparse else 2 * key
        total = Work(pairs * 4 * H * D, q + keys + q + lse)
        if kind == "training":
            # Again q and keys, and the output with its gradient and lse; made are dq, dk and dv.
            total += Work(pairs * 10 * H * D, q + keys + 2 * q + lse + q + 2 * key)
        return total
    sparse = operator == "index_loss"
    pairs = kept if sparse else visible
    keys = kept * (row + index_row) + indices if sparse else key + index_key
    read = q + lse + index_q + index_w + keys
    total = Work(pairs * (2 * H * D + 2 * I * C), read)
    if kind == "training":
        total += Work(pairs * 6 * I * C, read + index_q + index_key + index_w)
    return total


OPERATORS = (
    "dsa",
    "select_tokens",
    "sparse_attention",
    "index_loss",
    "dense_attention",
    "index_loss (all keys)",
)
"""In the order of the tables. `dsa` is selection and attention; in training also the indexer's loss."""

FORWARD_ONLY = ("select_tokens",)
"""Selection has no gradient."""


class Tensors:
    """Normally distributed inputs of one length. Selection and log-sum-exp are computed when first asked for."""

    def __init__(self, length: int, shape: Shape, dtype: torch.dtype, device: str, engine: str):
        self.shape, self.engine, self.length = shape, engine, length
        B, H, D, G, I, C, _ = vars(shape).values()  # noqa: E741
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int) -> Tensor:
            return torch.randn(B, length, *size, generator=generator).to(device, dtype)

        self.q, self.k, self.v = draw(H, D), draw(G, D), draw(G, D)
        self.index = [draw(I, C), draw(C), draw(I).float()]
        self.cotangent = draw(H, D)

    @cached_property
    def indices(self) -> Tensor:
        return select_tokens(*self.index, self.shape.k, engine=self.engine)

    @cached_property
    @torch.no_grad()
    def lse(self) -> Tensor:
        return sparse_attention(self.q, self.k, self.v, self.indices, engine=self.engine)[1]

    @cached_property
    @torch.no_grad()
    def dense_lse(self) -> Tensor:
        return dense_attention(self.q, self.k, self.v, engine=self.engine)[1]


def call_of(operator: str, kind: Pass, x: Tensors) -> Call:
    """One call of an operator, or of PyTorch's dense attention."""
    k, engine, training = x.shape.k, x.engine, kind == "training"
    # Computed now, or they would count as a part of the first call.
    indices = x.indices if operator in ("sparse_attention", "index_loss") else None
    lse = {"index_loss": lambda: x.lse, "index_loss (all keys)": lambda: x.dense_lse}.get(operator, lambda: None)()
    attention, cotangent = (x.q, x.k, x.v), x.cotangent
    if operator == DENSE:
        *attention, cotangent = (_by_heads(one, x.shape.H) for one in (*attention, cotangent))
    attention = [one.detach().requires_grad_(training) for one in attention]
    index = [one.detach().requires_grad_(training) for one in x.index]

    def forward() -> Outcome:
        if operator == "select_tokens":
            return Outcome([select_tokens(*index, k, engine=engine)], [], [])
        if operator == "dsa":
            made = dsa(*attention, *index, topk=k, stage="sparse" if training else "frozen", engine=engine)
            learnt = [made.out, made.loss] if training else [made.out]
            return Outcome([made.indices, *learnt], learnt, [*attention, *index])
        if operator == DENSE:
            out = scaled_dot_product_attention(*attention, is_causal=True)
            return Outcome([out], [out], attention)
        if operator == "sparse_attention":
            out, sums = sparse_attention(*attention, indices, engine=engine)
            return Outcome([out, sums], [out], attention)
        if operator == "dense_attention":
            out, sums = dense_attention(*attention, engine=engine)
            return Outcome([out, sums], [out], attention)
        loss = index_loss(*index, x.q, x.k, lse, indices=indices, engine=engine)
        return Outcome([loss], [loss], index)

    return with_gradients(forward, cotangent) if training else without_gradients(forward)


def _by_heads(x: Tensor, heads: int) -> Tensor:
    """`[B,T,G,D]` as contiguous `[B,heads,T,D]`, each group repeated for its heads: PyTorch's attention is fastest on
    that (measured on a CPU, backward it takes twice as long with `enable_gqa`), and the repetition is not timed.
    """
    return x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2).contiguous()


class Outcome(NamedTuple):
    """Of a forward pass: all it made, what of that has a gradient, and towards which leaves."""

    made: list[Tensor]
    differentiable: list[Tensor]
    leaves: list[Tensor]


def without_gradients(forward: Callable[[], Outcome]) -> Call:
    @torch.no_grad()
    def call() -> list[Tensor]:
        return forward().made

    return call


def with_gradients(forward: Callable[[], Outcome], cotangent: Tensor) -> Call:
    """`cotangent` is the gradient of an output, and 1 that of a loss."""

    def call() -> list[Tensor]:
        made, differentiable, leaves = forward()
        towards = [cotangent if one.dim() else torch.ones_like(one) for one in differentiable]
        gradients = torch.autograd.grad(differentiable, leaves, towards)
        return [one.detach() for one in made] + list(gradients)

    return call
