"""DeepSeek Sparse Attention once more, as the papers write it: the witness that the operators are held against.

Dense, float64 and slow on purpose. All T×S scores exist, queries are treated one at a time, the order of selection is
Python's own sort, and gradients are what autograd says about these few lines. No code is shared with `inazuma.ops`.

Shapes: B batch, T queries, S keys, H query heads, G key-value heads, I index heads. A set of keys for each query is a
bool tensor [B, T, S]; `visible` makes one from spans and `chosen` from indices. Inputs may have any float dtype; what
comes back is float64 and differentiable with respect to them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(batch: int, queries: int, keys: int, first: Tensor | None = None, last: Tensor | None = None) -> Tensor:
    """The keys with first <= s <= last, bool [B, T, S]; by default the queries are the last T of the S keys, causal."""
    seen = torch.zeros(batch, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for t in range(queries):
            low = 0 if first is None else int(first[b, t])
            high = keys - queries + t if last is None else int(last[b, t])
            for s in range(keys):
                seen[b, t, s] = low <= s <= high
    return seen


def chosen(indices: Tensor, keys: int) -> Tensor:
    """The keys that `indices` [B, T, K] name, bool [B, T, S]; -1 names none."""
    batch, queries, _ = indices.shape
    named = torch.zeros(batch, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for t in range(queries):
            for s in indices[b, t].tolist():
                if s != -1:
                    named[b, t, s] = True
    return named


def index_scores(index_q: Tensor, index_k: Tensor, index_w: Tensor) -> Tensor:
    """I[t,s] = Σ_j w[t,j] · relu(q[t,j] · k[s]) (DeepSeek-V3.2-Exp, equation 1), [B, T, S]."""
    products = torch.einsum("btjc,bsc->btjs", index_q.double(), index_k.double())
    return torch.einsum("btj,btjs->bts", index_w.double(), products.relu())


def select(scores: Tensor, seen: Tensor, k: int) -> Tensor:
    """The k best of the keys in `seen`: higher score first, then lower index; int32 [B, T, k], ascending, then -1."""
    batch, queries, _ = scores.shape
    indices = torch.full((batch, queries, k), -1, dtype=torch.int32)
    for b in range(batch):
        for t in range(queries):
            row = scores[b, t].tolist()
            candidates = seen[b, t].nonzero().flatten().tolist()
            best = sorted(candidates, key=lambda s, row=row: (-row[s], s))[:k]
            indices[b, t, : len(best)] = torch.tensor(sorted(best), dtype=torch.int32)
    return indices


def attention(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None = None, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over its keys in `seen`: out [B, T, H, Dv] and lse [B, T, H] (natural log).

    `sink` [H] is the logit of one more key whose value is zero.
    """
    k, v = _for_each_head(k, q.shape[2]), _for_each_head(v, q.shape[2])
    q = q.double()
    outs, lses = [], []
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            keys = seen[b, t].nonzero().flatten()
            logits = _scale(q, scale) * torch.einsum("hd,shd->hs", q[b, t], k[b, keys])
            values = v[b, keys]
            if sink is not None:
                logits = torch.cat([logits, sink.double()[:, None]], dim=1)
                values = torch.cat([values, torch.zeros_like(v[b, :1])])
            if logits.shape[1] == 0:
                outs.append(torch.zeros_like(v[b, 0]))
                lses.append(torch.full((q.shape[2],), -torch.inf, dtype=torch.float64))
            else:
                outs.append(torch.einsum("hs,shd->hd", logits.softmax(dim=1), values))
                lses.append(logits.logsumexp(dim=1))
    shape = q.shape[:3]
    return torch.stack(outs).view(*shape, -1), torch.stack(lses).view(shape)


def index_loss(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, seen: Tensor, scale: float | None = None
) -> Tensor:
    """The mean, over queries with a key in `seen`, of KL(p ‖ softmax(I)) over these keys.

    p is the average of the heads' attention distributions over the same keys, a constant for the gradient.
    """
    k = _for_each_head(k.detach(), q.shape[2])
    q = q.detach().double()
    scores = index_scores(index_q, index_k, index_w)
    losses = []
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            keys = seen[b, t].nonzero().flatten()
            if len(keys) > 0:
                logits = _scale(q, scale) * torch.einsum("hd,shd->hs", q[b, t], k[b, keys])
                target = logits.softmax(dim=1).mean(dim=0)
                log_student = scores[b, t, keys].log_softmax(dim=0)
                losses.append((torch.xlogy(target, target) - target * log_student).sum())
    return torch.stack(losses).mean() if losses else 0.0 * scores.sum()


def _for_each_head(x: Tensor, heads: int) -> Tensor:
    """[B, S, G, D] to float64 [B, S, H, D]: query head h reads key-value head h // (H / G)."""
    return x.double().repeat_interleave(heads // x.shape[2], dim=2)


def _scale(q: Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale
