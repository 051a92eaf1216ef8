"""Packs: neighbouring queries with few heads that share a tile's rows, and the keys that any of them keeps.

Eight heads fill half of the smallest tile, and each query would gather its keys alone. Neighbours keep much the same
keys, so a pack's keys are gathered once, each with a byte whose bit p says whether query p of the pack keeps it: the
rows of the others are masked, and the result is that of each query by itself (the idea is LiteDSA's).

The union is built without sorting: bits are set in a byte for every key, then read off from the first key to the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from inazuma.ops.triton import tiles
from inazuma.ops.triton.launch import Chunk, chunks


@triton.jit
def mark_holders(indices, marks, pack_begin, packs, T, K, WORDS, PACK: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (queries of the chunk's packs x tiles of kept keys, B). Sets bits of `marks [B,packs,WORDS]`, four keys to
    an int32; their order does not matter."""
    batch = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(K, BLOCK)
    query = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    chosen = indices + (batch * T + pack_begin * PACK + query) * K
    key = tl.load(chosen + place, mask=place < K, other=-1)
    read = key >= 0
    key = tl.where(read, key, 0)
    bit = tl.full([BLOCK], 1, tl.int32) << (key % 4 * 8 + query % PACK)
    tl.atomic_or(marks + (batch * packs + query // PACK) * WORDS + key // 4, bit, mask=read, sem="relaxed")


@triton.jit
def list_holders(marks, keys, holders, counts, S, MARKS, ROOM, BLOCK: tl.constexpr):
    """Grid (packs, B). Reads `marks` as bytes `[B,packs,MARKS]` and writes the marked keys, ascending, to `keys` and
    their bits to `holders`, both `[B,packs,ROOM]`, and how many they are to `counts [B,packs]`."""
    pack = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    count = 0
    for start in range(0, S, BLOCK):
        key = start + tl.arange(0, BLOCK)
        bits = tl.load(marks + pack * MARKS + key, mask=key < S, other=0)
        kept = bits != 0
        rank = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(keys + pack * ROOM + rank, key, mask=kept)
        tl.store(holders + pack * ROOM + rank, bits, mask=kept)
        count += tl.sum(kept.to(tl.int32), 0)
    tl.store(counts + pack, count)


class Union(NamedTuple):
    """What the packs of a chunk keep, ascending: `keys` int32 and `holders` uint8 `[B,packs,room]`, of which the first
    `counts [B,packs]` count; bit p of a holder is query p of the pack."""

    packs: Chunk
    keys: Tensor
    holders: Tensor
    counts: Tensor


def unions(indices: Tensor, S: int, pack: int) -> Iterator[Union]:
    """The packs of `indices [B,T,K]`, as many at a time as a slab holds."""
    B, T, K = indices.shape
    words, room = triton.cdiv(S, 4), min(pack * K, S)
    for chunk in chunks(B, triton.cdiv(T, pack), 4 * words + 5 * room, indices.device):
        part = indices[chunk.batch]
        lists = len(part), chunk.size
        queries = min(T - chunk.begin * pack, chunk.size * pack)
        marks = part.new_zeros(*lists, words)
        keys, counts = part.new_empty(*lists, room), part.new_empty(lists)
        holders = part.new_empty(*lists, room, dtype=torch.uint8)
        mark_holders[queries * triton.cdiv(K, tiles.UNION_BLOCK), len(part)](
            *(part, marks, chunk.begin, chunk.size, T, K, words), PACK=pack, BLOCK=tiles.UNION_BLOCK
        )
        list_holders[chunk.size, len(part)](
            *(marks.view(torch.uint8), keys, holders, counts, S, 4 * words, room), BLOCK=tiles.SELECT_BLOCK
        )
        yield Union(chunk, keys, holders, counts)
