"""The indexer's loss as a PyTorch operator: see `loss.py` for the steps of a chunk.

The loss's gradient depends on nothing downstream but a factor, so the forward pass computes it and the backward pass
multiplies. No postponed annotations here: PyTorch reads the operators' signatures.
"""

import torch
import triton
from torch import Tensor

from inazuma.ops.contract import Spans, check_range
from inazuma.ops.triton import tiles
from inazuma.ops.triton.launch import (
    Chunk,
    atomic,
    by_rows,
    bytes_of_pairs,
    chunks,
    limits,
    on_its_gpu,
    options,
    pairs_of,
    query_ranges,
    spans_of,
)
from inazuma.ops.triton.loss import (
    index_backward_keys,
    index_backward_queries,
    kept_scores_and_target,
    loss_of_rows,
    visible_target,
)
from inazuma.ops.triton.operators import alike, score_slab


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
    first, last = (None, None) if spans is None else spans_of(spans)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (index_q, index_k, index_w))
    teacher = (x.detach() for x in (q, k, lse))
    return _index_loss(index_q, index_k, index_w, *teacher, indices, first, last, scale, learns, atomic())[0]


@torch.library.custom_op("inazuma::triton_index_loss", mutates_args=())
@on_its_gpu
def _index_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
    learns: bool,
    any_order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and, where `learns`, its gradients to the index tensors (empty otherwise), summed in `any_order`."""
    dtypes = [x.dtype for x in (index_q, index_k, index_w)]
    index = alike(index_q, index_k, index_w)
    q, k, lse = by_rows(q), by_rows(k), lse.float().contiguous()
    B, T = q.shape[:2]
    S = index_k.shape[1]
    if indices is None:
        L, live = S, last >= first
    else:
        check_range(indices, S)
        indices = indices.contiguous()
        L, live = indices.shape[-1], (indices >= 0).any(-1)
    factor = 1 / live.sum().clamp(min=1).float()
    losses = lse.new_zeros(B, T)
    dq, dk, dw = (x.new_zeros(x.shape if learns else 0, dtype=torch.float32) for x in index)
    dq = dq.to(dtypes[0])
    map_bytes = bytes_of_pairs(L, S, index[1]) if indices is not None and learns and not any_order else 0
    for chunk in chunks(B, T, 8 * L + map_bytes, q.device):
        sets = [None if x is None else x[chunk.batch] for x in (indices, first, last)]
        parts = [x[chunk.batch] for x in index]
        g = _slope(parts, *(x[chunk.batch] for x in (q, k, lse)), sets, losses[chunk.batch], scale, chunk)
        if learns:
            _backward(parts, g, sets, factor, *(x[chunk.batch] for x in (dq, dk, dw)), chunk, any_order)
    gradients = (x.to(dtype) for x, dtype in zip((dq, dk * factor, dw), dtypes, strict=True))
    return losses.sum() * factor, *gradients


def _slope(
    index: list[Tensor],
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    sets: list[Tensor | None],
    losses: Tensor,
    scale: float,
    chunk: Chunk,
) -> Tensor:
    """g = softmax(I) - p `[B,chunk,L]` where a query reads the key; the queries' losses go to `losses [B,T]`."""
    indices, first, last = sets
    index_q, index_k, index_w = index
    B, T, I, C = index_q.shape  # noqa: E741  (the design's letter for index heads)
    S, G, Dk = k.shape[1:]
    N = q.shape[2] // G
    gpu = limits(q.device)
    main, rest = tiles.split(Dk)
    exact = torch.float32 in (q.dtype, index_q.dtype)
    width = tiles.Widths(Dk, 0, N, exact)
    widths = {"DK": Dk, "DK_MAIN": main, "DK_REST": rest}
    strides = (*q.stride()[:3], *k.stride()[:3])
    if indices is None:
        scores = score_slab(index_q, index_k, index_w, first, last, chunk, ordered=False)
        target = torch.empty_like(scores)
        tile = tiles.visible_target(gpu, width)
        ends = chunk.begin, chunk.begin + chunk.size
        visible_target[triton.cdiv(S, tile.keys), triton.cdiv(chunk.size, tile.rows), B](
            *(q, k, lse, first, last, target, *strides, *ends, T, S, N, G, scale),
            **widths,
            QUERIES=tile.rows,
            KEYS=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    else:
        K = indices.shape[-1]
        scores, target = lse.new_empty(2, B, chunk.size, K)
        tile = tiles.kept_target(gpu, width)
        kept_scores_and_target[chunk.size * triton.cdiv(K, tile.keys), B](
            *(*index, q, k, lse, indices, scores, target, *index_q.stride()[:3], *index_k.stride()[:2], *strides),
            *(chunk.begin, chunk.size, T, K, N, G, I, scale),
            **widths,
            C=C,
            C_TILE=tiles.power_of_two(C),
            **options(tile),
        )
    loss_of_rows[chunk.size, B](
        *(scores, target, *sets, losses, chunk.begin, chunk.size, T, scores.shape[-1]),
        SPARSE=indices is not None,
        BLOCK=tiles.LOSS_BLOCK,
    )
    return target


def _backward(
    index: list[Tensor],
    g: Tensor,
    sets: list[Tensor | None],
    factor: Tensor,
    dq: Tensor,
    dk: Tensor,
    dw: Tensor,
    chunk: Chunk,
    any_order: bool,
) -> None:
    """Writes the chunk's rows of `dq` and `dw`, times `factor`, and adds to the sums `dk`."""
    indices, first, last = sets
    index_q, index_k, _ = index
    B, T, I, C = index_q.shape  # noqa: E741
    S, L = index_k.shape[1], g.shape[-1]
    tile = tiles.index_backward(I, index_q.dtype == torch.float32)
    constants = {"C": C, "C_TILE": tiles.power_of_two(C), "SPARSE": indices is not None, **options(tile)}
    sizes = (*index_q.stride()[:3], *index_k.stride()[:2], chunk.begin, chunk.size, T, S, L, I)
    blocks = chunk.size * triton.cdiv(I, tile.rows) if indices is not None else triton.cdiv(chunk.size * I, tile.rows)
    index_backward_queries[blocks, B](*index, g, *sets, factor, dq, dw, *sizes, **constants)
    if indices is None:
        ranges = query_ranges(first, last, chunk.begin, chunk.begin + chunk.size, S, tile.keys)
        lists = None, None, None, first, last, ranges
        index_backward_keys[ranges.shape[1], B](*index, g, *lists, dk, *sizes, 1, ATOMIC=False, **constants)
        return
    grid = chunk.size * triton.cdiv(L, tile.keys), B
    if any_order:
        lists = indices, None, None, None, None, None
        index_backward_keys[grid](*index, g, *lists, dk, *sizes, 1, ATOMIC=True, **constants)
        return
    pairs = pairs_of(indices[:, chunk.begin : chunk.begin + chunk.size], S)
    contributions = pairs.room_for(index_k)
    lists, words = (indices, pairs.readers, pairs.starts, None, None, None), pairs.readers.shape[-1]
    index_backward_keys[grid](*index, g, *lists, contributions, *sizes, words, ATOMIC=False, **constants)
    pairs.add(contributions, dk)


@_index_loss.register_fake
def _(index_q, index_k, index_w, q, k, lse, indices, first, last, scale, learns, any_order):
    gradients = (x.new_empty(x.shape if learns else 0) for x in (index_q, index_k, index_w))
    return q.new_empty((), dtype=torch.float32), *gradients


def _save_loss(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])


def _differentiate_loss(ctx, dloss, *_):
    gradients = (x * dloss.to(x.dtype) for x in ctx.saved_tensors)
    return *gradients, *[None] * 9


_index_loss.register_autograd(_differentiate_loss, setup_context=_save_loss)
