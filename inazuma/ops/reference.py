"""DeepSeek Sparse Attention in plain PyTorch: the definition that every faster engine is held against.

Three steps, one function each (DeepSeek-V3.2, arXiv 2512.02556; letters as in `contract.py`):

    select_tokens      the lightning indexer scores every visible key,  I[t,s] = sum_i w[t,i] * relu(q[t,i] . k[s]),
                       and the K best are kept: higher score first, then the lower index
    sparse_attention   softmax attention over the kept keys alone
    index_loss         what teaches the indexer: KL(p || softmax(I)), p the attention's own distribution, mean of heads

The queries are worked off in chunks whose score slab has at most `slab_elements` elements, so nothing of size T x S
ever exists, forward or backward. Chunking changes no result beyond rounding. Sums are taken in float32, or in float64
for float64 inputs, autocast or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inazuma.errors import UserError
from inazuma.ops.contract import Spans, check_attention, check_index, check_indices, check_tensor, resolve_spans

slab_elements = 1 << 20
"""The largest temporary score slab, in elements (4 MiB in float32: about what stays in a processor's cache)."""

GATHER_PAYS = 32
"""Sparse attention reads a chunk's keys in place, masked, until they are this many times the kept tokens; beyond that
it gathers each query's own keys. A matrix product over contiguous keys is that much faster per key than a gather."""


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _exact(x: Tensor) -> AbstractContextManager:
    """Autocast off: inside the operators the dtypes are chosen by hand."""
    return torch.autocast(x.device.type, enabled=False)


# ---------------------------------------------------------------------------------------------------------------------
# Which keys a chunk of queries reads
# ---------------------------------------------------------------------------------------------------------------------


class _Window:
    """The keys `lo..hi` that some query of the chunk may see, shared by its queries: blocks are `[B, n, ...]`."""

    axes = "bs"

    def __init__(self, rows: slice, keys: slice, mask_BTS: Tensor):
        self.rows, self.keys, self.mask = rows, keys, mask_BTS
        self.unread = ~mask_BTS.any(1)  # [B, n]

    def read(self, x: Tensor) -> Tensor:
        """The block of `x [B,S,...]`, with zeros where no query looks: 0 * NaN in a product would be NaN."""
        block = x[:, self.keys]
        return block.masked_fill(self.unread.view(*self.unread.shape, *(1,) * (x.dim() - 2)), 0)

    def add(self, x: Tensor, block: Tensor) -> None:
        x[:, self.keys] += block


class _Gathered:
    """Each query's own K keys: blocks are `[B, c, K, ...]`."""

    axes = "bts"

    def __init__(self, rows: slice, indices_BTK: Tensor, S: int):
        self.rows = rows
        self.mask = indices_BTK >= 0
        # One more row than there are keys takes what the empty places (-1) would read or write.
        B = indices_BTK.shape[0]
        batch = torch.arange(B, device=indices_BTK.device).view(B, 1, 1) * S
        self.flat = (indices_BTK.clamp(min=0) + batch).flatten()

    def read(self, x: Tensor) -> Tensor:
        block = x.flatten(0, 1).index_select(0, self.flat).view(*self.mask.shape, *x.shape[2:])
        return block.masked_fill(~self.mask.view(*self.mask.shape, *(1,) * (x.dim() - 2)), 0)

    def add(self, x: Tensor, block: Tensor) -> None:
        x.view(-1, *x.shape[2:]).index_add_(0, self.flat, block.flatten(0, 2))


def _windows(spans: Spans, heads: int, S: int) -> Iterator[_Window]:
    """Chunks of queries with every key they see; `heads` score planes must fit the slab together."""
    B, T = spans.first.shape
    size = max(1, slab_elements // max(1, B * heads * S))
    # One transfer for all the chunks' bounds: a synchronisation per chunk would stall a GPU.
    starts = range(0, T, size)
    lows, highs = [], []
    for start in starts:
        first, last = spans.first[:, start : start + size], spans.last[:, start : start + size]
        lows.append(torch.where(last < first, S, first).amin())
        highs.append(last.amax() + 1)
    bounds = torch.stack([torch.stack(lows), torch.stack(highs)]).tolist() if lows else ([], [])
    for start, low, high in zip(starts, *bounds, strict=True):
        rows, keys = slice(start, min(start + size, T)), slice(min(low, high), high)
        position = torch.arange(keys.start, keys.stop, device=spans.first.device)
        first, last = spans.first[:, rows, None], spans.last[:, rows, None]
        yield _Window(rows, keys, (position >= first) & (position <= last))


def _selected(indices: Tensor, heads: int, S: int) -> Iterator[_Window | _Gathered]:
    """Chunks of queries with the keys that `indices` keeps, in the layout that is faster at this size."""
    B, T, K = indices.shape
    if K == 0 or S > GATHER_PAYS * K or T == 1:
        size = max(1, slab_elements // max(1, B * K * heads))
        for start in range(0, T, size):
            rows = slice(start, min(start + size, T))
            yield _Gathered(rows, indices[:, rows].long(), S)
        return
    last = indices.amax(-1).long()
    first = torch.where(indices < 0, S, indices).amin(-1).long()
    for window in _windows(Spans(first.clamp(max=S - 1), last), heads, S):
        low, n = window.keys.start, window.keys.stop - window.keys.start
        chosen = indices[:, window.rows].long()
        mask = torch.zeros(B, chosen.shape[1], n + 1, dtype=torch.bool, device=indices.device)
        mask.scatter_(2, torch.where(chosen < 0, n, chosen - low), True)  # the last column takes the empty places
        yield _Window(window.rows, window.keys, mask[..., :n])


def _key_sets(indices: Tensor | None, spans: Spans, heads: int, S: int) -> Iterator[_Window | _Gathered]:
    return _windows(spans, heads, S) if indices is None else _selected(indices, heads, S)


# ---------------------------------------------------------------------------------------------------------------------
# Token selection
# ---------------------------------------------------------------------------------------------------------------------


def _index_scores(index_q: Tensor, index_k: Tensor, index_w: Tensor, axes: str) -> tuple[Tensor, Tensor]:
    """`I [B,c,n]` and the rectified products `[B,I,c,n]` of one chunk; V3.2 report, equation 1."""
    products_BITS = torch.einsum(f"btic,{axes}c->bits", index_q, index_k).relu_()
    return torch.einsum("bti,bits->bts", index_w, products_BITS), products_BITS


def _keep_best(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """The mask of the k best visible keys of each row: higher score first, then lower index. `[B,c,n]` bool.

    Rectified scores tie often (exact zeros), so the k-th best value is found first; what lies above it is kept, and
    of what equals it the lowest indices that still fit. A score that is not finite never comes before a finite one.
    """
    scores = scores.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf).masked_fill_(~visible, -math.inf)
    threshold = scores.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above = scores > threshold
    equal = (scores == threshold) & visible
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


@torch.no_grad()
def select_tokens(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    k: int,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """The k visible keys of each query that the lightning indexer scores highest.

    Args:
        index_q: `[B,T,I,C]`. index_k: `[B,S,C]`, one key for all index heads.
        index_w: `[B,T,I]`, the heads' weights with all scales folded in; may be negative.
        k: how many to keep, at least 1; may exceed S.
        first, last: int32 `[B,T]`, the visible keys, inclusive; by default causal.

    Returns:
        int32 `[B,T,k]`, ascending, then -1 where a query sees fewer than k keys (it keeps all of them).

    Raises:
        UserError: a shape, dtype or device that does not fit.
    """
    check_index(index_q, index_k, index_w)
    if k < 1:
        raise UserError(f"k: at least one token must be kept, got {k}")
    B, T, heads, _ = index_q.shape
    S = index_k.shape[1]
    spans = resolve_spans(first, last, index_q, S)
    dtype = _accumulator(index_q)
    index_q, index_k, index_w = index_q.to(dtype), index_k.to(dtype), index_w.to(dtype)
    indices = torch.full((B, T, k), -1, dtype=torch.int32, device=index_q.device)
    with _exact(index_q):
        for window in _windows(spans, heads, S):
            keep = window.mask
            if keep.shape[-1] > k:  # otherwise every query keeps all it sees
                scores, _ = _index_scores(
                    index_q[:, window.rows], window.read(index_k), index_w[:, window.rows], window.axes
                )
                keep = _keep_best(scores, window.mask, k)
            batch, row, column = keep.nonzero(as_tuple=True)
            rank = keep.cumsum(-1, dtype=torch.int32)[batch, row, column] - 1
            indices[batch, row + window.rows.start, rank.long()] = (column + window.keys.start).to(torch.int32)
    return indices


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def _probabilities(q: Tensor, k: Tensor, lse: Tensor | None, mask: Tensor, scale: float, axes: str) -> tuple:
    """Softmax over one chunk's keys, `[B,G,N,c,n]`, from its log-sum-exp `[B,c,G,N]` (computed when None)."""
    scores = torch.einsum(f"btgnd,{axes}gd->bgnts", q * scale, k)
    scores.masked_fill_(~mask[:, None, None], -math.inf)
    if lse is None:
        lse = scores.logsumexp(-1).permute(0, 3, 1, 2)
    shift = lse.masked_fill(lse == -math.inf, 0).permute(0, 2, 3, 1)  # a query without keys: exp(-inf - 0) = 0
    return scores.sub_(shift[..., None]).exp_(), lse


class _Attention(torch.autograd.Function):
    """Softmax attention over a set of keys per query, with the recomputing backward of FlashAttention.

    With P = exp(scale Q K' - lse) and delta = rowsum(dO * O) - dlse (FlashAttention-2, arXiv 2307.08691, algorithm 2):

        dV = P' dO      dS = P * (dO V' - delta)      dQ = scale dS K      dK = scale dS' Q

    The heads are viewed as `[G, N]`, N = H / G query heads to a key-value head.
    """

    @staticmethod
    def forward(ctx, q, k, v, sink, indices, spans: Spans, scale: float):
        dtype = _accumulator(q)
        B, T, H, _ = q.shape
        S, G, Dv = v.shape[1:]
        with _exact(q):
            q_ = q.to(dtype).unflatten(2, (G, H // G))
            k_, v_ = k.to(dtype), v.to(dtype)
            out = q_.new_zeros(B, T, G, H // G, Dv)
            lse = q_.new_full((B, T, G, H // G), -math.inf)
            for keys in _key_sets(indices, spans, H, S):
                rows = keys.rows
                chunk = _probabilities(q_[:, rows], keys.read(k_), None, keys.mask, scale, keys.axes)
                probabilities, lse[:, rows] = chunk
                if sink is not None:  # one more logit in the denominator, with no value behind it
                    with_sink = torch.logaddexp(lse[:, rows], sink.to(dtype).view(G, H // G))
                    probabilities *= (lse[:, rows] - with_sink).exp().permute(0, 2, 3, 1)[..., None]
                    lse[:, rows] = with_sink
                out[:, rows] = torch.einsum(f"bgnts,{keys.axes}gd->btgnd", probabilities, keys.read(v_))
        out, lse = out.flatten(2, 3), lse.flatten(2, 3)
        ctx.save_for_backward(q, k, v, sink, indices, *spans, out, lse)
        ctx.scale = scale
        return out.to(q.dtype), lse

    @staticmethod
    @once_differentiable
    def backward(ctx, dout, dlse):
        q, k, v, sink, indices, first, last, out, lse = ctx.saved_tensors
        dtype, scale = out.dtype, ctx.scale
        H, G, S = q.shape[2], k.shape[2], k.shape[1]
        with _exact(q):
            heads = lambda x: x.to(dtype).unflatten(2, (G, H // G))  # noqa: E731
            q_, out, dout, lse = heads(q), heads(out), heads(dout), heads(lse)
            k_, v_ = k.to(dtype), v.to(dtype)
            delta = (dout * out).sum(-1) - heads(dlse)
            dq, dk, dv = torch.zeros_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
            for keys in _key_sets(indices, Spans(first, last), H, S):
                rows, axes = keys.rows, keys.axes
                k_block, v_block = keys.read(k_), keys.read(v_)
                probabilities, _ = _probabilities(q_[:, rows], k_block, lse[:, rows], keys.mask, scale, axes)
                keys.add(dv, torch.einsum(f"bgnts,btgnd->{axes}gd", probabilities, dout[:, rows]))
                dscores = torch.einsum(f"btgnd,{axes}gd->bgnts", dout[:, rows], v_block)
                dscores.sub_(delta[:, rows].permute(0, 2, 3, 1)[..., None]).mul_(probabilities).mul_(scale)
                dq[:, rows] = torch.einsum(f"bgnts,{axes}gd->btgnd", dscores, k_block)
                keys.add(dk, torch.einsum(f"bgnts,btgnd->{axes}gd", dscores, q_[:, rows]))
            dsink = None
            if sink is not None:
                weight = (sink.to(dtype).view(G, H // G) - lse).exp()
                dsink = -(weight * delta).sum((0, 1)).flatten().to(sink.dtype)
        return dq.flatten(2, 3).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dsink, None, None, None


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
    scale: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over every visible key: what sparse attention approximates and the indexer learns from.

    Arguments and results are those of `sparse_attention`, with the visible keys in place of `indices`.
    """
    check_attention(q, k, v, sink)
    spans = resolve_spans(first, last, q, k.shape[1])
    return _Attention.apply(q, k, v, sink, None, spans, q.shape[-1] ** -0.5 if scale is None else scale)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over its selected keys.

    Args:
        q: `[B,T,H,Dk]`. k: `[B,S,G,Dk]`. v: `[B,S,G,Dv]`; head h reads key-value head h // (H / G).
            Absorbed multi-head latent attention is G = 1, with v the first columns of k.
        indices: int32 `[B,T,K]`; -1 is an empty place. No key twice in a row.
        scale: of the scores, by default Dk ** -0.5.
        sink: `[H]`, a logit per head that takes part in the denominator only.

    Returns:
        out `[B,T,H,Dv]` in q's dtype, and lse `[B,T,H]`, the natural logarithm of the softmax denominator, in float32
        (float64 for float64 inputs). A query without keys gives zeros and -inf (with a sink: the sink).

    Raises:
        UserError: a shape, dtype, device or index that does not fit.
    """
    check_attention(q, k, v, sink)
    check_indices(indices, q, k.shape[1])
    spans = Spans(indices.new_empty(0), indices.new_empty(0))  # unused: the indices say it all
    return _Attention.apply(q, k, v, sink, indices, spans, q.shape[-1] ** -0.5 if scale is None else scale)


# ---------------------------------------------------------------------------------------------------------------------
# The indexer's loss
# ---------------------------------------------------------------------------------------------------------------------


class _IndexLoss(torch.autograd.Function):
    """KL(p || softmax(I)) and its gradient, which one pass can compute: it depends on nothing downstream but a factor.

    With g[t,s] = softmax(I)[t,s] - p[t,s] and a = q . k (V3.2 report, equations 3 and 4, differentiated):

        dw[t,i] = sum_s g relu(a)     dq[t,i] = sum_s g w 1[a > 0] k[s]     dk[s] = sum_t,i g w 1[a > 0] q[t,i]
    """

    @staticmethod
    def forward(ctx, index_q, index_k, index_w, q, k, lse, indices, spans: Spans, scale: float):
        dtype = torch.promote_types(_accumulator(index_q), _accumulator(q))
        H, G, S = q.shape[2], k.shape[2], k.shape[1]
        learns = any(ctx.needs_input_grad[:3])
        with _exact(q):
            iq, ik, iw, k_ = index_q.to(dtype), index_k.to(dtype), index_w.to(dtype), k.to(dtype)
            q_, lse_ = (x.to(dtype).unflatten(2, (G, H // G)) for x in (q, lse))
            grads = [torch.zeros_like(x) for x in (iq, ik, iw)] if learns else None
            total = iq.new_zeros(())
            queries = 0
            for keys in _key_sets(indices, spans, H + iq.shape[2], S):
                rows, axes = keys.rows, keys.axes
                target, _ = _probabilities(q_[:, rows], keys.read(k_), lse_[:, rows], keys.mask, scale, axes)
                target = target.mean((1, 2))  # each head's softmax sums to 1 over the set, so their mean does too
                ik_block = keys.read(ik)
                scores, products = _index_scores(iq[:, rows], ik_block, iw[:, rows], axes)
                seeing = keys.mask.any(-1, keepdim=True)
                # A row that sees nothing is left unmasked (its target is zero): log_softmax of -inf alone is NaN.
                logs = scores.masked_fill_(~keys.mask & seeing, -math.inf).log_softmax(-1)
                total += (torch.xlogy(target, target) - target * logs.masked_fill(~keys.mask, 0)).sum()
                queries += seeing.sum()
                if not learns:
                    continue
                # target.sum() is 1 up to rounding; with it g sums to zero exactly, so one visible key gives g = 0.
                g = logs.exp_().mul_(target.sum(-1, keepdim=True)).sub_(target).masked_fill_(~keys.mask, 0)
                grads[2][:, rows] = torch.einsum("bts,bits->bti", g, products)
                g = (products > 0) * g[:, None] * iw[:, rows].transpose(1, 2)[..., None]
                grads[0][:, rows] = torch.einsum(f"bits,{axes}c->btic", g, ik_block)
                keys.add(grads[1], torch.einsum(f"bits,btic->{axes}c", g, iq[:, rows]))
            count = torch.as_tensor(queries, device=q.device).clamp(min=1)
        if learns:
            grads = [grad.div_(count).to(x.dtype) for grad, x in zip(grads, (index_q, index_k, index_w), strict=True)]
            ctx.save_for_backward(*grads)
        return total / count

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
    *,
    indices: Tensor | None = None,
    first: Tensor | None = None,
    last: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """How far the indexer is from the attention it serves: mean over queries of KL(p || softmax(I)), in nats.

    p[t,s] = (1/H) sum_h exp(scale q[t,h] . k[s] - lse[t,h]) over the selected keys, or over every visible key when
    `indices` is None (the warm-up). Queries that see no key do not count. Gradients go to the three index tensors
    alone; q, k and lse are the teacher and are taken as constants.

    Args:
        index_q, index_k, index_w: as for `select_tokens`. q, k, scale: as for the attention.
        lse: `[B,T,H]`, the attention's log-sum-exp over that same set of keys, without a sink.

    Returns:
        a scalar in float32 (float64 for float64 inputs).
    """
    check_index(index_q, index_k, index_w)
    check_attention(q, k)
    check_tensor("lse", lse, q.shape[:3], "B,T,H", q)
    check_tensor("index_q", index_q, (*q.shape[:2], None, None), "B,T,I,C", q)
    check_tensor("index_k", index_k, (*k.shape[:2], None), "B,S,C", q)
    if indices is None:
        spans = resolve_spans(first, last, q, k.shape[1])
    else:
        check_indices(indices, q, k.shape[1])
        spans = Spans(indices.new_empty(0), indices.new_empty(0))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _IndexLoss.apply(index_q, index_k, index_w, q.detach(), k.detach(), lse.detach(), indices, spans, scale)
