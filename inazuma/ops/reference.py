"""DeepSeek Sparse Attention in plain PyTorch: the definition that every faster engine is held against.

Three steps, one function each (DeepSeek-V3.2, arXiv 2512.02556; letters as in `contract.py`):

    select_tokens      the lightning indexer scores every visible key,  I[t,s] = sum_i w[t,i] * relu(q[t,i] . k[s]),
                       and the K best are kept: higher score first, then the lower index
    sparse_attention   softmax attention over the kept keys alone
    index_loss         what teaches the indexer: KL(p || softmax(I)), p the attention's own distribution, mean of heads

The queries are worked off in chunks whose score slab has at most `slab_elements` elements, so nothing of size T x S
ever exists, forward or backward. Chunking changes no result beyond rounding. Sums are taken in float32, or in float64
for float64 inputs, autocast or not. The four functions are an engine behind `dispatch.py`, which has checked their
arguments and describes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inazuma.ops.contract import Spans, check_range

slab_elements = 1 << 20
"""The largest temporary score slab, in elements (4 MiB in float32: about what stays in a core's cache)."""

GATHER_PAYS = 32
"""Sparse attention reads a chunk's keys in place, masked, until they are this many times the kept tokens; beyond that
it gathers each query's own keys. A matrix product over contiguous keys is that much faster per key than a gather."""


def obstacle(*tensors: Tensor | None) -> None:
    """Nothing keeps this engine from running."""


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _exact(x: Tensor) -> AbstractContextManager:
    """Autocast off: inside the operators the dtypes are chosen by hand."""
    return torch.autocast(x.device.type, enabled=False)


# ---------------------------------------------------------------------------------------------------------------------
# Which keys a chunk of queries reads. From here on letters are small, as in einsum, and a chunk is of one batch row.
# ---------------------------------------------------------------------------------------------------------------------


class _Window:
    """The n keys from the first to the last that some query of the chunk sees, shared by its queries.

    A block is `[..., n, d]`, written with the key axes "s".
    """

    axes = "s"

    def __init__(self, batch: int, rows: slice, keys: slice, hidden: Tensor):
        self.batch, self.rows, self.keys = batch, rows, keys
        self.hidden = hidden
        """Bool `[t, s]`: the keys of the block that a query does not read."""

    def read(self, x: Tensor) -> Tensor:
        """The block of `x [B, ..., S, d]`."""
        return x[self.batch][..., self.keys, :]

    def add(self, x: Tensor, block: Tensor) -> None:
        """Adds `block` to where `read` took it from."""
        x[self.batch][..., self.keys, :] += block


class _Gathered:
    """Each query's own K keys. A block is `[..., t, K, d]`, written with the key axes "ts"."""

    axes = "ts"

    def __init__(self, batch: int, rows: slice, indices: Tensor):
        self.batch, self.rows = batch, rows
        self.hidden = indices < 0
        self.flat = indices.clamp(min=0).flatten().long()

    def read(self, x: Tensor) -> Tensor:
        block = x[self.batch].index_select(-2, self.flat).unflatten(-2, self.hidden.shape)
        return block.masked_fill_(self.hidden[..., None], 0)

    def add(self, x: Tensor, block: Tensor) -> None:
        x[self.batch].index_add_(-2, self.flat, block.flatten(-3, -2))


def _windows(spans: Spans, heads: int, S: int) -> Iterator[_Window]:
    """Chunks of queries with every key they see; `heads` score planes must fit the slab together."""
    B, T = spans.first.shape
    if T == 0:
        return
    size = max(1, slab_elements // max(1, heads * S))
    starts = range(0, T, size)
    # One transfer for all chunks' bounds: a synchronisation per chunk would stall a GPU.
    low = torch.where(spans.last < spans.first, S, spans.first)
    lows = torch.stack([low[:, start : start + size].amin(1) for start in starts], 1)
    highs = torch.stack([spans.last[:, start : start + size].amax(1) + 1 for start in starts], 1)
    bounds = torch.stack([torch.minimum(lows, highs), highs], -1).tolist()
    for batch in range(B):
        for start, (low, high) in zip(starts, bounds[batch], strict=True):
            rows = slice(start, min(start + size, T))
            position = torch.arange(low, high, device=spans.first.device)
            first, last = spans.first[batch, rows, None], spans.last[batch, rows, None]
            yield _Window(batch, rows, slice(low, high), (position < first) | (position > last))


def _selected(indices: Tensor, heads: int, S: int, width: int) -> Iterator[_Window | _Gathered]:
    """Chunks of queries with the keys that `indices` keeps, in the layout that is faster at this size.

    `width` is that of the widest block, per key: what is gathered must fit the slab too.
    """
    B, T, K = indices.shape
    if T == 1 or S > GATHER_PAYS * K:
        size = max(1, slab_elements // max(1, K * max(heads, width)))
        for batch in range(B):
            for start in range(0, T, size):
                rows = slice(start, min(start + size, T))
                yield _Gathered(batch, rows, indices[batch, rows])
        return
    first = torch.where(indices < 0, S, indices).amin(-1).long()
    for window in _windows(Spans(first, indices.amax(-1).long()), heads, S):
        low, n = window.keys.start, window.keys.stop - window.keys.start
        chosen = indices[window.batch, window.rows].long()
        # One more column than there are keys takes the empty places.
        hidden = torch.ones(len(chosen), n + 1, dtype=torch.bool, device=indices.device)
        hidden.scatter_(1, torch.where(chosen < 0, n, chosen - low), False)
        yield _Window(window.batch, window.rows, window.keys, hidden[:, :n])


def _key_sets(
    indices: Tensor | None, spans: Spans | None, heads: int, S: int, width: int
) -> Iterator[_Window | _Gathered]:
    return _windows(spans, heads, S) if indices is None else _selected(indices, heads, S, width)


def _unread(indices: Tensor | None, spans: Spans | None, B: int, S: int) -> Tensor:
    """The keys that no query reads, bool `[B, S]`. Zeros are put in their place: 0 * NaN in a product would be NaN."""
    if indices is not None:
        read = torch.zeros(B, S + 1, dtype=torch.bool, device=indices.device)
        return ~read.scatter_(1, torch.where(indices < 0, S, indices).flatten(1).long(), True)[:, :S]
    # How many spans are open at each key: +1 where one begins, -1 behind where it ends.
    opened = torch.zeros(B, S + 1, dtype=torch.int32, device=spans.first.device)
    one = torch.ones_like(spans.first, dtype=torch.int32)
    opened.scatter_add_(1, spans.first, one).scatter_add_(1, spans.last + 1, -one)
    return opened.cumsum(1)[:, :S] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Token selection
# ---------------------------------------------------------------------------------------------------------------------


def _index_scores(index_q: Tensor, index_k: Tensor, index_w: Tensor, axes: str) -> tuple[Tensor, Tensor]:
    """`I [t,s]` and the rectified products `[t,i,s]` of one chunk; V3.2 report, equation 1."""
    products = torch.einsum(f"tic,{axes}c->tis", index_q, index_k).relu_()
    return torch.einsum("ti,tis->ts", index_w, products), products


def _keep_best(scores: Tensor, hidden: Tensor, k: int) -> Tensor:
    """Which k keys each row keeps, of those not hidden: higher score first, then lower index. Bool `[t,s]`.

    Rectified scores tie often (exact zeros), so the k-th best value is found first; what lies above it is kept, and
    of what equals it the lowest indices that still fit. A score that is not finite never comes before a finite one.
    """
    scores = scores.nan_to_num_(nan=-math.inf, posinf=-math.inf, neginf=-math.inf).masked_fill_(hidden, -math.inf)
    threshold = scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above = scores > threshold
    equal = (scores == threshold) & ~hidden
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


@torch.no_grad()
def select_tokens(index_q: Tensor, index_k: Tensor, index_w: Tensor, k: int, spans: Spans) -> Tensor:
    B, T, heads, _ = index_q.shape
    S = index_k.shape[1]
    dtype = _accumulator(index_q)
    index_q, index_k, index_w = index_q.to(dtype), index_k.to(dtype), index_w.to(dtype)
    indices = torch.full((B, T, k), -1, dtype=torch.int32, device=index_q.device)
    with _exact(index_q):
        index_k = index_k.masked_fill(_unread(None, spans, B, S)[..., None], 0)
        for window in _windows(spans, heads, S):
            chunk = window.batch, window.rows
            keep = ~window.hidden
            if keep.shape[-1] > k:  # otherwise every query keeps all it sees
                scores, _ = _index_scores(index_q[chunk], window.read(index_k), index_w[chunk], window.axes)
                keep = _keep_best(scores, window.hidden, k)
            row, column = keep.nonzero(as_tuple=True)
            rank = keep.cumsum(-1)[row, column] - 1
            indices[chunk][row, rank] = (column + window.keys.start).to(torch.int32)
    return indices


def count_non_finite(index_q: Tensor, index_k: Tensor, index_w: Tensor, spans: Spans) -> int:
    """How many scores of visible keys are NaN or infinite."""
    dtype = _accumulator(index_q)
    index_q, index_k, index_w = index_q.to(dtype), index_k.to(dtype), index_w.to(dtype)
    count = 0
    with _exact(index_q):
        for window in _windows(spans, index_q.shape[2], index_k.shape[1]):
            chunk = window.batch, window.rows
            scores, _ = _index_scores(index_q[chunk], window.read(index_k), index_w[chunk], window.axes)
            count += int((~scores.isfinite() & ~window.hidden).sum())
    return count


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def _heads_first(x: Tensor, G: int, dtype: torch.dtype) -> Tensor:
    """`[B,T,H,...]` as `[B,G,N,T,...]`, N = H / G query heads to a key-value head."""
    return x.to(dtype).unflatten(2, (G, -1)).movedim(1, 3).contiguous()


def _heads_last(x: Tensor) -> Tensor:
    """`[B,G,N,T,...]` as `[B,T,H,...]`."""
    return x.movedim(3, 1).flatten(2, 3)


def _scores(q: Tensor, k: Tensor, lse: Tensor | None, axes: str) -> Tensor:
    """`q k'` of one chunk, `[g,n,t,s]`, less the log-sum-exp `[g,n,t]` where it is given (and finite: see below)."""
    scores = torch.einsum(f"gntd,g{axes}d->gnts", q, k)
    if lse is None:
        return scores
    # A query without keys has lse -inf and all its scores hidden: anything finite will do.
    return scores.sub_(lse.masked_fill(lse == -math.inf, 0)[..., None])


class _Attention(torch.autograd.Function):
    """Softmax attention over a set of keys per query, with the recomputing backward of FlashAttention.

    With P = exp(scale Q K' - lse) and delta = rowsum(dO * O) - dlse (FlashAttention-2, arXiv 2307.08691, algorithm 2):

        dV = P' dO      dS = P * (dO V' - delta)      dQ = scale dS K      dK = scale dS' Q
    """

    @staticmethod
    def forward(ctx, q, k, v, sink, indices, spans: Spans | None, scale: float):
        dtype = _accumulator(q)
        B, S, G, _ = k.shape
        unread = _unread(indices, spans, B, S)
        with _exact(q):
            q_ = _heads_first(q, G, dtype) * scale
            k_, v_ = (x.to(dtype).transpose(1, 2).masked_fill(unread[:, None, :, None], 0) for x in (k, v))
            out = q_.new_zeros(*q_.shape[:-1], v.shape[-1])
            lse = q_.new_full(q_.shape[:-1], -math.inf)
            for keys in _key_sets(indices, spans, q.shape[2], S, G * max(k.shape[-1], v.shape[-1])):
                chunk = keys.batch, ..., keys.rows
                scores = _scores(q_[*chunk, :], keys.read(k_), None, keys.axes).masked_fill_(keys.hidden, -math.inf)
                total = scores.logsumexp(-1)
                if sink is not None:  # one more logit in the denominator, with no value behind it
                    total = torch.logaddexp(total, sink.to(dtype).view(G, -1, 1))
                lse[chunk] = total
                probabilities = scores.sub_(total.masked_fill(total == -math.inf, 0)[..., None]).exp_()
                out[*chunk, :] = torch.einsum(f"gnts,g{keys.axes}d->gntd", probabilities, keys.read(v_))
        ctx.save_for_backward(q, k, v, sink, indices, *(spans or (None, None)), out, lse)
        ctx.scale = scale
        return _heads_last(out).to(q.dtype), _heads_last(lse)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlse):
        q, k, v, sink, indices, first, last, out, lse = ctx.saved_tensors
        spans = None if first is None else Spans(first, last)
        dtype, scale = out.dtype, ctx.scale
        B, S, G, _ = k.shape
        unread = _unread(indices, spans, B, S)
        with _exact(q):
            q_, dout = _heads_first(q, G, dtype) * scale, _heads_first(dout, G, dtype)
            k_, v_ = (x.to(dtype).transpose(1, 2).masked_fill(unread[:, None, :, None], 0) for x in (k, v))
            delta = (dout * out).sum(-1) - _heads_first(dlse, G, dtype)
            dq, dk, dv = torch.zeros_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
            for keys in _key_sets(indices, spans, q.shape[2], S, G * max(k.shape[-1], v.shape[-1])):
                chunk, axes = (keys.batch, ..., keys.rows), keys.axes
                rows = *chunk, slice(None)
                k_block, v_block = keys.read(k_), keys.read(v_)
                scores = _scores(q_[rows], k_block, lse[chunk], axes)
                probabilities = scores.masked_fill_(keys.hidden, -math.inf).exp_()
                keys.add(dv, torch.einsum(f"gnts,gntd->g{axes}d", probabilities, dout[rows]))
                dscores = torch.einsum(f"gntd,g{axes}d->gnts", dout[rows], v_block)
                dscores.sub_(delta[chunk][..., None]).mul_(probabilities)
                dq[rows] = torch.einsum(f"gnts,g{axes}d->gntd", dscores, k_block)
                keys.add(dk, torch.einsum(f"gnts,gntd->g{axes}d", dscores, q_[rows]))  # q_ carries the scale
            dsink = None
            if sink is not None:
                weight = (sink.to(dtype).view(G, -1, 1) - lse).exp()
                dsink = -(weight * delta).sum((0, 3)).flatten().to(sink.dtype)
        dk, dv = (x.transpose(1, 2).to(k.dtype) for x in (dk, dv))
        return _heads_last(dq.mul_(scale)).to(q.dtype), dk, dv, dsink, None, None, None


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _Attention.apply(q, k, v, sink, None, spans, scale)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    check_range(indices, k.shape[1])
    return _Attention.apply(q, k, v, sink, indices, None, scale)


# ---------------------------------------------------------------------------------------------------------------------
# The indexer's loss
# ---------------------------------------------------------------------------------------------------------------------


class _IndexLoss(torch.autograd.Function):
    """KL(p || softmax(I)) and its gradient, which one pass can compute: it depends on nothing downstream but a factor.

    With g[t,s] = softmax(I)[t,s] - p[t,s] and a = q . k (V3.2 report, equations 3 and 4, differentiated):

        dw[t,i] = sum_s g relu(a)     dq[t,i] = sum_s g w 1[a > 0] k[s]     dk[s] = sum_t,i g w 1[a > 0] q[t,i]
    """

    @staticmethod
    def forward(ctx, index_q, index_k, index_w, q, k, lse, indices, spans: Spans | None, scale: float):
        dtype = torch.promote_types(_accumulator(index_q), _accumulator(q))
        B, S, G, _ = k.shape
        heads = q.shape[2] + index_q.shape[2]
        learns = any(ctx.needs_input_grad[:3])
        unread = _unread(indices, spans, B, S)
        with _exact(q):
            iq, iw = index_q.to(dtype), index_w.to(dtype)
            ik = index_k.to(dtype).masked_fill(unread[..., None], 0)
            q_, lse_ = _heads_first(q, G, dtype) * scale, _heads_first(lse, G, dtype)
            k_ = k.to(dtype).transpose(1, 2).masked_fill(unread[:, None, :, None], 0)
            diq, dik, diw = (torch.zeros_like(x) if learns else None for x in (iq, ik, iw))
            total, queries = iq.new_zeros(()), torch.zeros((), dtype=torch.long, device=q.device)
            for keys in _key_sets(indices, spans, heads, S, max(G * k.shape[-1], index_q.shape[-1])):
                rows, heads_rows, axes = (keys.batch, keys.rows), (keys.batch, ..., keys.rows), keys.axes
                # Each head's softmax sums to 1 over the set, so their mean does too.
                target = _scores(q_[*heads_rows, :], keys.read(k_), lse_[heads_rows], axes).exp_().mean((0, 1))
                target.masked_fill_(keys.hidden, 0)
                ik_block = keys.read(ik)
                scores, products = _index_scores(iq[rows], ik_block, iw[rows], axes)
                blind = keys.hidden.all(-1, keepdim=True)
                queries += (~blind).sum()
                # A row that sees nothing stays unmasked, for log_softmax of -inf alone is NaN; its target is zero.
                logs = scores.masked_fill_(keys.hidden & ~blind, -math.inf).log_softmax(-1)
                total += (torch.xlogy(target, target) - target * logs.masked_fill(keys.hidden, 0)).sum()
                if not learns:
                    continue
                # The target sums to 1 up to rounding; counted as it is, g sums to 0, and one visible key gives g = 0.
                g = logs.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target).masked_fill_(keys.hidden, 0)
                diw[rows] = torch.einsum("ts,tis->ti", g, products)
                # products are rectified: where they are zero nothing flows, at zero itself included.
                g = torch.ops.aten.threshold_backward(g[:, None] * iw[rows][..., None], products, 0)
                diq[rows] = torch.einsum(f"tis,{axes}c->tic", g, ik_block)
                keys.add(dik, torch.einsum(f"tis,tic->{axes}c", g, iq[rows]))
            queries.clamp_(min=1)
        if learns:
            pairs = zip((diq, dik, diw), (index_q, index_k, index_w), strict=True)
            ctx.save_for_backward(*(grad.div_(queries).to(x.dtype) for grad, x in pairs))
        return total / queries

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        grads = [(grad * dloss).to(grad.dtype) for grad in ctx.saved_tensors]
        return *grads, None, None, None, None, None, None


def index_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    indices: Tensor | None,
    spans: Spans | None,
    scale: float,
) -> Tensor:
    if indices is not None:
        check_range(indices, k.shape[1])
    return _IndexLoss.apply(index_q, index_k, index_w, q.detach(), k.detach(), lse.detach(), indices, spans, scale)
