"""The Triton engine as PyTorch operators: what launches the kernels, their gradients, and shapes for `torch.compile`.

Work that needs a slab (scores, or what each pair of query and key contributes) goes over the queries in chunks, whose
number depends on shapes alone: nothing here waits for the GPU except the check of the indices' range.

No postponed annotations here: PyTorch reads the operators' signatures.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from inazuma.ops.contract import Spans, check_range
from inazuma.ops.triton import tiles
from inazuma.ops.triton.attention import attention_backward_keys, attention_backward_queries, attention_forward
from inazuma.ops.triton.launch import (
    Chunk,
    Pairs,
    atomic,
    by_rows,
    bytes_of_pairs,
    chunks,
    keys_and_values,
    limits,
    on_its_gpu,
    options,
    pairs_of,
    query_ranges,
    spans_of,
)
from inazuma.ops.triton.packs import unions
from inazuma.ops.triton.selection import index_scores, keep_best


def select_tokens(index_q: Tensor, index_k: Tensor, index_w: Tensor, k: int, spans: Spans) -> Tensor:
    return _select(index_q, index_k, index_w, k, *spans_of(spans))


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _attention(q, k, v, sink, indices, None, None, scale, values_are_keys(k, v))


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _attention(q, k, v, sink, None, *spans_of(spans), scale, values_are_keys(k, v))


# ---------------------------------------------------------------------------------------------------------------------
# Token selection
# ---------------------------------------------------------------------------------------------------------------------


def score_slab(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, first: Tensor, last: Tensor, chunk: Chunk, ordered: bool
) -> Tensor:
    """The chunk's scores `[B,chunk,S]` in float32, or as ordered int32; see the kernel `index_scores`."""
    T, I, C = index_q.shape[1:]  # noqa: E741  (the design's letter for index heads)
    B, S = index_k.shape[:2]
    slab = index_q.new_empty(B, chunk.size, S, dtype=torch.int32 if ordered else torch.float32)
    tile = tiles.scores(limits(index_q.device), chunk.size, index_q.dtype == torch.float32)
    index_scores[triton.cdiv(S, tile.keys), triton.cdiv(chunk.size, tile.rows), B](
        index_q,
        index_k,
        index_w,
        first,
        last,
        slab,
        *index_q.stride()[:3],
        *index_k.stride()[:2],
        chunk.begin,
        chunk.begin + chunk.size,
        T,
        S,
        I,
        C=C,
        C_TILE=tiles.power_of_two(C),
        ORDERED=ordered,
        QUERIES=tile.rows,
        KEYS=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return slab


@torch.library.custom_op("inazuma::triton_select_tokens", mutates_args=())
@on_its_gpu
def _select(index_q: Tensor, index_k: Tensor, index_w: Tensor, k: int, first: Tensor, last: Tensor) -> Tensor:
    B, T = index_q.shape[:2]
    S = index_k.shape[1]
    index_q, index_k, index_w = alike(index_q, index_k, index_w)
    indices = index_q.new_empty(B, T, k, dtype=torch.int32)
    room = tiles.candidates(S, k)
    for chunk in chunks(B, T, 4 * S + 8 * room, index_q.device):
        parts = (x[chunk.batch] for x in (index_q, index_k, index_w, first, last))
        slab = score_slab(*parts, chunk, ordered=True)
        keep_best[chunk.size, slab.shape[0]](
            slab,
            first[chunk.batch],
            last[chunk.batch],
            indices[chunk.batch],
            indices.new_empty(slab.shape[0], chunk.size, 2, room) if room else None,
            chunk.begin,
            chunk.size,
            T,
            S,
            k,
            ROOM=room,
            SAMPLE=tiles.SAMPLE,
            BLOCK=tiles.SELECT_BLOCK,
        )
    return indices


@_select.register_fake
def _(index_q, index_k, index_w, k, first, last):
    return index_q.new_empty(*index_q.shape[:2], k, dtype=torch.int32)


def alike(index_q: Tensor, index_k: Tensor, index_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index tensors as the kernels read them: q and k of one dtype, weights in float32."""
    dtype = torch.promote_types(index_q.dtype, index_k.dtype)
    return by_rows(index_q.to(dtype)), by_rows(index_k.to(dtype)), index_w.float().contiguous()


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def values_are_keys(k: Tensor, v: Tensor) -> bool:
    """Whether `v` is `k[..., :Dv]` as kernels and as autograd see it, so that one gradient may hold what both are owed.

    That they share memory is not enough: of a detached view nothing is owed to the keys.
    """
    if torch.compiler.is_compiling() or v.grad_fn is None or "Slice" not in v.grad_fn.name():
        return False
    source = v.grad_fn.next_functions[0][0]
    slice_of_k = source is k.grad_fn if k.grad_fn is not None else getattr(source, "variable", None) is k
    same_rows = v.shape[:-1] == k.shape[:-1] and v.stride() == k.stride() and v.storage_offset() == k.storage_offset()
    return slice_of_k and same_rows and v.shape[-1] == tiles.split(k.shape[-1])[0]


class Problem(NamedTuple):
    """Attention's arguments as every kernel takes them, and what decides on tiles."""

    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    constants: dict[str, int | bool]
    absorbed: bool
    """Whether the values are the first columns of the keys, in the same memory."""
    packed: bool
    """Whether neighbouring queries share their kept keys' tiles."""
    widths: tiles.Widths


def _attention_problem(q: Tensor, k: Tensor, v: Tensor, indices: Tensor | None) -> Problem:
    T, S, N = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    K = 0 if indices is None else indices.shape[-1]
    Dk, Dv = k.shape[-1], v.shape[-1]
    main, rest = tiles.split(Dk)
    absorbed = v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and Dv == main
    constants = {
        "DK": Dk,
        "DK_MAIN": main,
        "DK_REST": rest,
        "DV": Dv,
        "DV_TILE": tiles.power_of_two(Dv),
        "SPARSE": indices is not None,
    }
    widths = tiles.Widths(Dk, 0 if absorbed else Dv, N, q.dtype == torch.float32)
    packed = indices is not None and tiles.packs(N, S, K)
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3]
    return Problem(strides, (T, S, K, N), constants, absorbed, packed, widths)


def _launch_by_rows(
    kernel: triton.JITFunction,
    tile: tiles.Tiles,
    problem: Problem,
    qkv: tuple[Tensor, ...],
    sets: tuple[Tensor | None, ...],
    results: tuple[Tensor, ...],
    scale: float,
    **more: Tensor | bool | None,
) -> None:
    """Launches a kernel whose programs own rows, once, or for packs once for each slab of unions.

    sets: `indices`, `first` and `last`.
    """
    T, S, K, N = problem.sizes
    indices, first, last = sets
    constants = {**problem.constants, "VALUES_IN_KEYS": problem.absorbed, "PACK": tile.pack, **options(tile), **more}

    def launch(count: int, batch: slice, lists: tuple[Tensor | None, ...], K: int, tile_begin: int) -> None:
        q, k, v, begin, end, *out = (None if x is None else x[batch] for x in (*qkv, first, last, *results))
        sizes = *problem.strides, T, S, K, N, tile_begin, scale
        kernel[count, k.shape[2], len(q)](q, k, v, *lists, begin, end, *out, *sizes, **constants)

    if tile.pack > 1:
        for union in unions(indices, S, tile.pack):
            lists = union.keys, union.holders, union.counts
            launch(union.packs.size, union.packs.batch, lists, union.keys.shape[-1], union.packs.begin)
    else:
        count = triton.cdiv(T * N, tile.rows) if indices is None else T * triton.cdiv(N, tile.rows)
        launch(count, slice(None), (indices, None, None), K, 0)


@torch.library.custom_op("inazuma::triton_attention", mutates_args=())
@on_its_gpu
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
    merged: bool,
) -> tuple[Tensor, Tensor]:
    q, (k, v) = by_rows(q), keys_and_values(k, v)
    if indices is not None:
        check_range(indices, k.shape[1])
        indices = indices.contiguous()
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    problem = _attention_problem(q, k, v, indices)
    tile = tiles.forward(limits(q.device), problem.widths, indices is not None, problem.packed)
    sink = None if sink is None else sink.contiguous()
    has_sink = {"sink": sink, "HAS_SINK": sink is not None}
    sets = indices, first, last
    _launch_by_rows(attention_forward, tile, problem, (q, k, v), sets, (out, lse), scale, **has_sink)
    return out, lse


@_attention.register_fake
def _(q, k, v, sink, indices, first, last, scale, merged):
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("inazuma::triton_attention_backward", mutates_args=())
@on_its_gpu
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
    merged: bool,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor,
    any_order: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, and `delta = rowsum(dout * out) - dlse`, float32 `[B,T,H]`.

    merged: whether the gradient of k shall hold that of v, which is then empty. any_order: whether gradients of kept
    keys may be summed in any order.
    """
    q, (k, v), dout, dlse = by_rows(q), keys_and_values(k, v), by_rows(dout.contiguous()), dlse.contiguous()
    if indices is not None:
        indices = indices.contiguous()
    B, S, G, _ = k.shape
    problem = _attention_problem(q, k, v, indices)
    T, _, K, _ = problem.sizes
    gpu = limits(q.device)

    dq, delta = q.new_empty(q.shape), torch.empty_like(lse)
    tile = tiles.backward_queries(gpu, problem.widths, indices is not None, problem.packed)
    sets, results = (indices, first, last), (out, lse, dout, dlse, delta, dq)
    _launch_by_rows(attention_backward_queries, tile, problem, (q, k, v), sets, results, scale)

    tile = tiles.backward_keys(gpu, problem.widths, indices is not None, merged)

    def backward_keys(
        grid: int, chunk: Chunk, ranges: Tensor | None, pairs: Pairs | None, results: list[Tensor], parts: int = 1
    ) -> None:
        before, after = (
            [None if x is None else x[chunk.batch] for x in xs] for xs in ((first, last), (lse, dout, delta))
        )
        qkv_sets = [None if x is None else x[chunk.batch] for x in (q, k, v, indices)]
        map_of_pairs = (None, None) if pairs is None else (pairs.readers, pairs.starts)
        words = 1 if pairs is None else pairs.readers.shape[-1]
        attention_backward_keys[grid, G, len(qkv_sets[0])](
            *(*qkv_sets, *map_of_pairs, *before, ranges, *after, *results, *[None] * merged),
            *(*problem.strides, chunk.begin, *problem.sizes, words, scale),
            ATOMIC=indices is not None and any_order,
            MERGED=merged,
            PARTS=parts,
            **problem.constants,
            **options(tile),
        )

    owed = (k,) if merged else (k, v)
    whole = Chunk(slice(0, B), 0, T)
    if indices is None:
        ranges = query_ranges(first, last, 0, T, S, tile.keys)
        programs = ranges.shape[1] * G * B
        parts = max(1, min(triton.cdiv(tiles.SPLITS, programs), T * problem.widths.heads // tile.rows))
        sums = [x.new_empty(parts, *x.shape, dtype=x.dtype if parts == 1 else torch.float32) for x in owed]
        backward_keys(parts * ranges.shape[1], whole, ranges, None, sums, parts)
        sums = [x.sum(0) for x in sums]
    else:
        sums = [x.new_zeros(x.shape, dtype=torch.float32) for x in owed]
        blocks = triton.cdiv(K, tile.keys)
        if any_order:
            backward_keys(T * blocks, whole, None, None, sums)
        else:
            for chunk in chunks(B, T, bytes_of_pairs(K, S, *owed), k.device):
                pairs = pairs_of(indices[chunk.batch, chunk.begin : chunk.begin + chunk.size], S)
                contributions = [pairs.room_for(x) for x in owed]
                backward_keys(chunk.size * blocks, chunk, None, pairs, contributions)
                for x, contribution in zip(sums, contributions, strict=True):
                    pairs.add(contribution, x[chunk.batch])
    dk, dv = (*(x.to(y.dtype) for x, y in zip(sums, owed, strict=True)), *[v.new_empty(0)] * merged)
    return dq, dk, dv, delta


@_attention_backward.register_fake
def _(q, k, v, indices, first, last, scale, merged, out, lse, dout, dlse, any_order):
    dv = v.new_empty(0 if merged else v.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), dv, torch.empty_like(lse)


def _save_attention(ctx, inputs, output):
    *tensors, ctx.scale, ctx.merged = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate_attention(ctx, dout, dlse):
    q, k, v, sink, indices, first, last, out, lse = ctx.saved_tensors
    sets = indices, first, last
    dq, dk, dv, delta = _attention_backward(q, k, v, *sets, ctx.scale, ctx.merged, out, lse, dout, dlse, atomic())
    dsink = None
    if sink is not None:
        dsink = -((sink.float() - lse).exp() * delta).sum((0, 1)).to(sink.dtype)
    return dq, dk, None if ctx.merged else dv, dsink, None, None, None, None, None


_attention.register_autograd(_differentiate_attention, setup_context=_save_attention)
