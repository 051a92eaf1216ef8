"""Attention over paged caches on a GPU: each query reads the rows of the pools that its sequence's table names, in the
format in which they are kept. For queries that come alone, as when texts are written: those of a long prompt share
tiles of keys in `dense_attention`.

A query's keys are shared out among programs (split-K, as in Flash-Decoding: Dao, Haziza, Massa and Sizov, 2023), or a
single text would keep a few of a GPU's multiprocessors busy; a second kernel adds the parts up. Nothing waits for the
GPU, so that a step can be captured as a graph. Letters as in `inazuma/ops/paged.py`, but that N is H / G.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from inazuma.ops.pool import PAGE, Pool
from inazuma.ops.triton import WIDEST, tiles
from inazuma.ops.triton.attention import columns
from inazuma.ops.triton.launch import limits, on_its_gpu

MOST_SHARES = 64
PROGRAMS = 4
"""Of a multiprocessor, for which a query's keys are shared out."""


@triton.jit
def decoded_columns(
    data, rows, exists, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, PLAIN: tl.constexpr
):
    """What `columns` reads, of rows in fp8 (see `Pool`), in float32."""
    CODED: tl.constexpr = WIDTH - PLAIN
    GROUPS: tl.constexpr = (CODED + 127) // 128
    column = START + tl.arange(0, SIZE)
    coded = exists[:, None] & (column < CODED)[None, :]
    bits = tl.load(data + rows[:, None] + column[None, :], mask=coded, other=0).to(tl.int16)
    # e4m3 has the bits of a float16 whose exponent is less by 8, subnormal numbers included.
    numbers = (((bits & 0x7F) << 7) | ((bits & 0x80) << 8)).to(tl.float16, bitcast=True).to(tl.float32) * 256
    scales = (data + CODED).to(tl.pointer_type(tl.float32))
    scale = tl.load(scales + rows[:, None] // 4 + (column // 128)[None, :], mask=coded, other=0.0)
    result = numbers * scale
    if START + SIZE > CODED and PLAIN > 0:
        rest = exists[:, None] & (column >= CODED)[None, :] & (column < WIDTH)[None, :]
        plain = (data + CODED + 4 * GROUPS).to(tl.pointer_type(tl.bfloat16))
        result += tl.load(plain + rows[:, None] // 2 + (column - CODED)[None, :], mask=rest, other=0.0).to(tl.float32)
    return result


@triton.jit
def pool_columns(
    data,
    rows,
    exists,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PLAIN: tl.constexpr,
    FP8: tl.constexpr,
):
    """`[keys, SIZE]`: from column START on of a pool's rows, which begin at `rows`; zeros where not `exists`."""
    if FP8:
        result = decoded_columns(data, rows, exists, START, SIZE, WIDTH, PLAIN)
    else:
        result = columns(data, rows, exists, START, SIZE, WIDTH)
    return result


@triton.jit
def paged_attention(
    q,
    keys,
    values,
    tables,
    row,
    last,
    indices,
    out,
    lse,
    k_row,
    k_group,
    v_row,
    v_group,
    pages,
    P,
    K,
    share,
    H,
    scale,
    N: tl.constexpr,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    V_WIDTH: tl.constexpr,
    PLAIN: tl.constexpr,
    V_PLAIN: tl.constexpr,
    FP8: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    LISTED: tl.constexpr,
    PAGE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (queries times tiles of a group's heads, G, shares). Writes `out [shares,queries,H,DV]` and
    `lse [shares,queries,H]`, -inf where a share has no key.

    `q [queries,H,DK]` is contiguous, in the dtype of the products. A row of `values` has V_WIDTH columns, of which the
    first DV count; VALUES_IN_KEYS: the keys' main columns have them all. LISTED: `indices [queries,K]` are the
    positions to read; otherwise all up to `last`. A page that is none is not read.
    """
    blocks: tl.constexpr = (N + ROWS - 1) // ROWS
    query, group, part = tl.program_id(0) // blocks, tl.program_id(1), tl.program_id(2)
    inside = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    exists = inside < N
    head = group * N + inside
    q_offsets = (query.to(tl.int64) * H + head) * DK
    q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
    if DK_REST > 0:
        q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
    end = tl.load(last + query)
    table = tables + tl.load(row + query).to(tl.int64) * P
    count = K if LISTED else end + 1
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, DV_TILE], tl.float32)
    for start in range(part * share, tl.minimum(count, (part + 1) * share), KEYS):
        place = start + tl.arange(0, KEYS)
        position = place
        seen = place < count
        if LISTED:
            position = tl.load(indices + query.to(tl.int64) * K + place, mask=seen, other=-1)
            seen = (position >= 0) & (position <= end)
        page = tl.load(table + position // PAGE, mask=seen & (position < P * PAGE), other=-1)
        seen = (page >= 0) & (page < pages)
        slot = page.to(tl.int64) * PAGE + position % PAGE
        k_rows = slot * k_row + group * k_group
        k_main = pool_columns(keys, k_rows, seen, 0, DK_MAIN, DK, PLAIN, FP8).to(q_main.dtype)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if DK_REST > 0:
            k_rest = pool_columns(keys, k_rows, seen, DK_MAIN, DK_REST, DK, PLAIN, FP8).to(q_main.dtype)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        if VALUES_IN_KEYS:
            read = k_main
        else:
            v_rows = slot * v_row + group * v_group
            read = pool_columns(values, v_rows, seen, 0, DV_TILE, V_WIDTH, V_PLAIN, FP8).to(q_main.dtype)
        mix = tl.dot(weights.to(read.dtype), read, mix * shrink[:, None], input_precision="ieee")
        largest = above
    place = (part.to(tl.int64) * (tl.num_programs(0) // blocks) + query) * H + head
    some = total > 0
    result = mix / tl.where(some, total, 1.0)[:, None]
    column = tl.arange(0, DV_TILE)
    tl.store(out + place[:, None] * DV + column[None, :], result, mask=exists[:, None] & (column < DV)[None, :])
    tl.store(lse + place, tl.where(some, largest + tl.log(tl.where(some, total, 1.0)), float("-inf")), mask=exists)


@triton.jit
def add_shares(parts, lse, out, rows, shares, DV: tl.constexpr, DV_TILE: tl.constexpr):
    """Grid (rows). `out [rows,DV]` of `parts [shares,rows,DV]` and `lse [shares,rows]`; 0 where no share has keys."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DV_TILE)
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    mix = tl.zeros([DV_TILE], tl.float32)
    for share in range(0, shares):
        at = share * rows + row
        here = tl.load(lse + at)
        above = tl.maximum(largest, here)
        base = tl.where(above == float("-inf"), 0.0, above)
        shrink, weight = tl.exp(largest - base), tl.exp(here - base)
        mix = mix * shrink + weight * tl.load(parts + at * DV + column, mask=column < DV, other=0.0)
        total = total * shrink + weight
        largest = above
    tl.store(out + row * DV + column, mix / tl.where(total > 0, total, 1.0), mask=column < DV)


@on_its_gpu
def attend(
    q: Tensor,
    keys: Pool,
    values: Pool | None,
    tables: Tensor,
    row: Tensor,
    last: Tensor,
    scale: float,
    indices: Tensor | None,
    Dv: int,
) -> Tensor:
    """As `paged.attend`, but that nobody checks rows and positions: to read them would be to wait for the GPU. No
    memory but the pools' is read whatever they are."""
    count, H, Dk = q.shape
    exact = keys.format == "float32" or interpreted()
    q = q.contiguous() if exact else q.bfloat16().contiguous()
    G, heads = keys.heads, H // keys.heads
    main, rest = tiles.split(Dk)
    held, inside = keys if values is None else values, values is None and Dv <= main
    tile = tiles.paged(limits(q.device), tiles.Widths(Dk, 0 if inside else Dv, heads, exact), keys.format)
    P = tables.shape[1]
    K = P * PAGE if indices is None else indices.shape[1]
    blocks = triton.cdiv(heads, tile.rows)
    wanted = triton.cdiv(PROGRAMS * processors(q.device), max(1, count * blocks * G))
    shares = max(1, min(wanted, triton.cdiv(K, tile.keys), MOST_SHARES))
    share = triton.cdiv(triton.cdiv(K, shares), tile.keys) * tile.keys
    parts = q.new_empty(shares, count, H, Dv, dtype=torch.float32)
    lse = parts.new_empty(shares, count, H)
    paged_attention[count * blocks, G, shares](
        q,
        keys.data,
        held.data,
        tables.contiguous(),
        row,
        last,
        None if indices is None else indices.contiguous(),
        parts,
        lse,
        *keys.data.stride()[:2],
        *held.data.stride()[:2],
        min(keys.pages, held.pages),
        P,
        K,
        share,
        H,
        scale,
        N=heads,
        DK=Dk,
        DK_MAIN=main,
        DK_REST=rest,
        DV=Dv,
        DV_TILE=main if inside else tiles.power_of_two(Dv),
        V_WIDTH=held.width,
        PLAIN=keys.plain,
        V_PLAIN=held.plain,
        FP8=keys.format == "fp8",
        VALUES_IN_KEYS=inside,
        LISTED=indices is not None,
        PAGE=PAGE,
        ROWS=tile.rows,
        KEYS=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if shares == 1:
        return parts[0]
    out = parts.new_empty(count, H, Dv)
    add_shares[(count * H,)](parts, lse, out, count * H, shares, DV=Dv, DV_TILE=tiles.power_of_two(Dv))
    return out


def interpreted() -> bool:
    """Whether this is Triton's interpreter, which has no products of bfloat16."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def obstacle(q: Tensor, *pools: Pool) -> str | None:
    """Why these kernels cannot read the pools; None where they can."""
    dtype = torch.float32 if any(pool.format == "float32" for pool in pools) else torch.bfloat16
    if q.shape[-1] > WIDEST[dtype]:
        return f"heads of width {q.shape[-1]}"
    if any(pool.format == "fp8" and ((pool.width - pool.plain) % 4 or pool.columns % 4) for pool in pools):
        return "scales that do not lie at multiples of four bytes"
    return None


def processors(device: torch.device) -> int:
    return 1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
