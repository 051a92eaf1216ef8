"""Kernels of the inverted map: which queries read a key.

A query's kept keys are gathered, so its contributions to them must be scattered back. Atomic additions would do that
in another order each time; here the contributions are written out, one row for each pair (query, key), and each key
sums its own in the order of the queries. So gradients are the same bits in every run.

The rows lie in the order in which they are summed: by key, then by query. Nothing is sorted for that. A chunk's queries
set bits, WORDS int32 to a key; counting the bits before a pair's gives its row.
"""

import triton
import triton.language as tl


@triton.jit
def count_ones(bits):
    """How many bits of each int32 are set (Warren, Hacker's Delight, figure 5-2)."""
    bits = bits.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def row_of_pair(readers, starts, key, query, read):
    """The row of each pair (query, key) of a chunk: `key` is where a key's words begin, `query` counts in the chunk."""
    place = key + query // 32
    before = (tl.full(place.shape, 1, tl.int32) << (query % 32)) - 1
    earlier = count_ones(tl.load(readers + place, mask=read, other=0) & before)
    return tl.load(starts + place, mask=read, other=0) + earlier


@triton.jit
def mark_readers(indices, readers, batch_stride, S, K, WORDS, BLOCK: tl.constexpr):
    """Grid (queries of the chunk x tiles of kept keys, B). Sets bit q % 32 of `readers [B,S,WORDS]` at word q // 32 of
    each key that the chunk's query q keeps."""
    batch = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(K, BLOCK)
    query = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(indices + batch * batch_stride + query.to(tl.int64) * K + place, mask=place < K, other=-1)
    read = key >= 0
    word = (batch * S + tl.where(read, key, 0)) * WORDS + query // 32
    tl.atomic_or(readers + word, tl.full([BLOCK], 1, tl.int32) << (query % 32), mask=read, sem="relaxed")


@triton.jit
def count_readers(readers, counts, COUNT, BLOCK: tl.constexpr):
    """Writes how many bits are set in each of COUNT words."""
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = word < COUNT
    tl.store(counts + word, count_ones(tl.load(readers + word, mask=exists, other=0)), mask=exists)


@triton.jit
def sum_pairs(contributions, starts, total, COUNT, WORDS, WIDTH, KEYS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (tiles of keys, tiles of columns). Adds to each of the COUNT keys of `total [B*S,WIDTH]`, float32, its rows
    of `contributions [pairs,WIDTH]`: those from `starts [B*S*WORDS+1]` at its first word to that of the next key."""
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = key < COUNT
    begin = tl.load(starts + key.to(tl.int64) * WORDS, mask=exists, other=0)
    end = tl.load(starts + (key.to(tl.int64) + 1) * WORDS, mask=exists, other=0)
    most = tl.max(end - begin, 0)
    if most > 0:
        inside = (end > begin)[:, None] & (column < WIDTH)[None, :]
        sums = total + key.to(tl.int64)[:, None] * WIDTH + column[None, :]
        owed = tl.load(sums, mask=inside, other=0.0)
        for first in range(0, most, 4):
            # Four loads at once, and additions one after another: the same bits as one by one.
            for i in tl.static_range(4):
                row = begin + first + i
                mask = (row < end)[:, None] & (column < WIDTH)[None, :]
                offsets = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
                owed += tl.load(contributions + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(sums, owed, mask=inside)


@triton.jit
def query_ranges(first, last, ranges, query_begin, query_end, T, KEYS: tl.constexpr, QUERIES: tl.constexpr):
    """Grid (tiles of KEYS keys, B). Writes `ranges [B,tiles,2]`: a half-open range of queries, of those from
    `query_begin` to `query_end`, that has all who see a key of the tile; empty where nobody does."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    low, high = query_end, query_begin
    for start in range(query_begin, query_end, QUERIES):
        query = start + tl.arange(0, QUERIES)
        exists = query < query_end
        begin = tl.load(first + batch * T + query, mask=exists, other=0)
        end = tl.load(last + batch * T + query, mask=exists, other=-1)
        sees = (begin <= end) & (begin < (tile + 1) * KEYS) & (end >= tile * KEYS)
        low = tl.minimum(low, tl.min(tl.where(sees, query, query_end), 0))
        high = tl.maximum(high, tl.max(tl.where(sees, query + 1, query_begin), 0))
    place = ranges + (batch * tl.num_programs(0) + tile) * 2
    tl.store(place, low)
    tl.store(place + 1, tl.maximum(low, high))
