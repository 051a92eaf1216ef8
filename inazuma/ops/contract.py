"""What the operators accept: shapes, dtypes and the spans of visible keys, checked once for every engine.

    B batch      T queries       S keys
    H query heads                G key-value heads (H is a multiple of G)
    D width of a head (Dk of queries and keys, Dv of values)
    I index heads                C index width             K kept tokens

A query sees the keys `first <= s <= last`. This one notion is causality, packed documents, padding and a cache's
offset, so no operator takes a T x S mask. `last < first` sees nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from inazuma.errors import UserError

LONGEST = 2**31 - 1
"""The most keys, and the most places of a selection: indices are int32."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Spans(NamedTuple):
    """The keys each query sees: `first` and `last`, int64 `[B, T]`, inclusive and inside `[0, S - 1]`.

    A query that sees nothing has `first = 0, last = -1`.
    """

    first: Tensor
    last: Tensor


def check_tensor(name: str, x: Tensor, shape: tuple[int | None, ...], letters: str, like: Tensor | None = None) -> None:
    """Raises `UserError` unless `x` is a float tensor of `shape` (None: any size) on the device of `like`."""
    if not isinstance(x, Tensor):
        raise UserError(f"{name}: expected a tensor [{letters}], got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise UserError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    same_rank = x.dim() == len(shape)
    if not same_rank or any(want not in (None, size) for want, size in zip(shape, x.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"{name}: expected shape [{letters}] = [{wanted}], got {list(x.shape)}")
    if like is not None and x.device != like.device:
        raise UserError(f"{name}: is on {x.device}, the other tensors on {like.device}")


def check_index(index_q: Tensor, index_k: Tensor, index_w: Tensor) -> None:
    """`index_q [B,T,I,C]`, `index_k [B,S,C]`, `index_w [B,T,I]`."""
    check_tensor("index_q", index_q, (None,) * 4, "B,T,I,C")
    B, T, I, C = index_q.shape  # noqa: E741  (I is the design's letter for index heads)
    check_tensor("index_k", index_k, (B, None, C), "B,S,C", index_q)
    check_tensor("index_w", index_w, (B, T, I), "B,T,I", index_q)
    _check_length("index_k", index_k.shape[1])


def check_kept(k: int) -> None:
    """Raises `UserError` unless `k` is a number of tokens that a query can keep."""
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise UserError(f"k: expected a whole number of tokens, got {k!r}")
    if k < 1:
        raise UserError(f"k: at least one token must be kept, got {k}")
    if k > LONGEST:
        raise UserError(f"k: indices are int32, at most {LONGEST} tokens can be kept, got {k}")


def _check_length(name: str, S: int) -> None:
    if S > LONGEST:
        raise UserError(f"{name}: indices are int32, at most {LONGEST} keys can be told apart, got {S}")


def check_attention(q: Tensor, k: Tensor, v: Tensor | None = None, sink: Tensor | None = None) -> None:
    """`q [B,T,H,Dk]`, `k [B,S,G,Dk]`, `v [B,S,G,Dv]` with H a multiple of G, and `sink [H]`."""
    check_tensor("q", q, (None,) * 4, "B,T,H,Dk")
    B, _, H, Dk = q.shape
    if Dk == 0:
        raise UserError("q: heads have no width (its last dimension is 0)")
    check_tensor("k", k, (B, None, None, Dk), "B,S,G,Dk", q)
    S, G = k.shape[1:3]
    _check_length("k", S)
    if G == 0 or H % G:
        raise UserError(f"q: {H} query heads cannot be shared out among k's {G} key-value heads")
    for name, x in (("k", k), ("v", v)):
        if x is not None and x.dtype != q.dtype:
            raise UserError(f"{name}: is {x.dtype}, q is {q.dtype}")
    if v is not None:
        check_tensor("v", v, (B, S, G, None), "B,S,G,Dv", q)
    if sink is not None:
        check_tensor("sink", sink, (H,), "H", q)


def check_indices(indices: Tensor, q: Tensor) -> None:
    """`indices` int32 `[B,T,K]`. Whether its values are keys, `check_range` says."""
    B, T = q.shape[:2]
    if not isinstance(indices, Tensor) or indices.dtype != torch.int32:
        raise UserError(f"indices: expected an int32 tensor, got {getattr(indices, 'dtype', type(indices).__name__)}")
    if indices.dim() != 3 or indices.shape[:2] != (B, T):
        raise UserError(f"indices: expected shape [B,T,K] = [{B}, {T}, any], got {list(indices.shape)}")
    if indices.device != q.device:
        raise UserError(f"indices: is on {indices.device}, the other tensors on {q.device}")


def check_range(indices: Tensor, S: int) -> None:
    """Raises `UserError` unless each index is in `[-1, S - 1]`.

    It reads the values, so each engine calls it where `torch.compile` does not look.
    """
    if indices.numel():
        low, high = (int(x) for x in indices.aminmax())
        if low < -1 or high >= S:
            raise UserError(f"indices: expected -1 or a key in 0..{S - 1}, found {low if low < -1 else high}")


def resolve_spans(first: Tensor | None, last: Tensor | None, q: Tensor, S: int) -> Spans:
    """The spans with their defaults: causal, the T queries being the last T of the S keys."""
    B, T = q.shape[:2]
    for name, x in (("first", first), ("last", last)):
        if x is None:
            continue
        if x.dtype != torch.int32 or x.shape != (B, T):
            raise UserError(f"{name}: expected int32 [B,T] = [{B}, {T}], got {x.dtype} {list(x.shape)}")
        if x.device != q.device:
            raise UserError(f"{name}: is on {x.device}, the other tensors on {q.device}")
    if last is None and T > S:
        raise UserError(f"last: {T} queries over {S} keys have no causal default; pass `last`")
    causal = torch.arange(S - T, S, device=q.device).expand(B, T)
    first = torch.zeros_like(causal) if first is None else first.long().clamp(min=0)
    last = causal if last is None else last.long().clamp(max=S - 1)
    empty = last < first
    return Spans(first.masked_fill(empty, 0), last.masked_fill(empty, -1))
