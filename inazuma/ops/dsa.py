"""DeepSeek Sparse Attention as one operator: score, select, attend, and the loss that teaches the indexer."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops.contract import check_attention, check_tensor
from inazuma.ops.dispatch import dense_attention, index_loss, select_tokens, sparse_attention

Stage = Literal["dense", "warmup", "sparse", "frozen"]


class DSAOutput(NamedTuple):
    out: Tensor
    """`[B,T,H,Dv]` in q's dtype."""
    loss: Tensor | None
    """The indexer's KL, a scalar in nats; None where nothing teaches it."""
    indices: Tensor | None
    """int32 `[B,T,topk]`, the selection; None where every visible key is read."""


def dsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_q: Tensor | None,
    index_k: Tensor | None,
    index_w: Tensor | None,
    *,
    topk: int,
    stage: Stage,
    first: Tensor | None = None,
    last: Tensor | None = None,
    scale: float | None = None,
    indices: Tensor | None = None,
    engine: str = "auto",
) -> DSAOutput:
    """Attention in one of the stages that a sparse model is trained through (V3.2 report, section "Training").

    | stage    | attends to        | indexer learns from  | gradient of `out` |
    |----------|-------------------|----------------------|-------------------|
    | dense    | every visible key | every visible key, if index tensors are given | q, k, v |
    | warmup   | every visible key | every visible key    | none              |
    | sparse   | its selection     | its selection        | q, k, v           |
    | frozen   | its selection     | nothing              | q, k, v           |

    The output's gradient goes to q, k and v only, the loss's to index_q, index_k and index_w only.
    Shapes are those of `select_tokens` and `sparse_attention`. A layer that shares an earlier layer's selection passes
    it as `indices`, with that layer's index tensors, which then learn from both layers.
    """
    if stage not in get_args(Stage):
        raise UserError(f"stage: expected one of {', '.join(get_args(Stage))}, got {stage!r}")
    index = (index_q, index_k, index_w)
    if any(x is None for x in index) and (stage != "dense" or any(x is not None for x in index)):
        raise UserError(f"index_q, index_k, index_w: stage {stage!r} needs all three")
    if topk < 1:
        raise UserError(f"topk: at least one token must be kept, got {topk}")
    if index_q is not None:
        check_attention(q, k, v)
        check_tensor("index_q", index_q, (*q.shape[:2], None, None), "B,T,I,C", q)
        check_tensor("index_k", index_k, (*k.shape[:2], index_q.shape[-1]), "B,S,C", q)
    spans = {"first": first, "last": last}
    if stage in ("dense", "warmup"):
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage == "dense"):
            out, lse = dense_attention(q, k, v, scale=scale, engine=engine, **spans)
        loss = None if index_q is None else index_loss(*index, q, k, lse, scale=scale, engine=engine, **spans)
        return DSAOutput(out, loss, None)
    keys: dict[str, Tensor | None] = {"indices": indices}
    if indices is None:
        indices = select_tokens(*index, topk, engine=engine, **spans)
        # Where k keeps every key, the selection is all that is seen, and reading it in place is faster than gathering.
        keys = spans if k.shape[1] <= topk else {"indices": indices}
    attend = sparse_attention if "indices" in keys else dense_attention
    out, lse = attend(q, k, v, **keys, scale=scale, engine=engine)
    loss = index_loss(*index, q, k, lse, **keys, scale=scale, engine=engine) if stage == "sparse" else None
    return DSAOutput(out, loss, indices)
