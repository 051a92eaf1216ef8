"""Kernels of the inverted map: which queries read a key.

A query's kept keys are gathered, so its contributions to them must be scattered back. Atomic additions would do that
in another order each time; here the contributions are written out, one row for each pair (query, key), and each key
sums its own in the order of the queries. So gradients are the same bits in every run.

Nothing is sorted: of a chunk's few queries each notes where every key stands in its list, and a key asks them in turn.
"""

import triton
import triton.language as tl


@triton.jit
def mark_places(indices, places, batch_stride, S, K, BLOCK: tl.constexpr):
    """Grid (queries of the chunk x tiles of kept keys, B). Writes the place of each kept key in its query's list to
    `places [B,chunk,S]`."""
    batch = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(K, BLOCK)
    query = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(indices + batch * batch_stride + query.to(tl.int64) * K + place, mask=place < K, other=-1)
    row = batch * (tl.num_programs(0) // blocks) + query
    tl.store(places + row * S + key, place, mask=key >= 0)


@triton.jit
def sum_pairs(contributions, places, total, chunk, S, K, WIDTH, KEYS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (tiles of keys, tiles of columns, B). Adds to `total [B,S,WIDTH]`, float32, each key's rows of
    `contributions [B,chunk,K,WIDTH]`, which `places [B,chunk,S]` finds (-1: the query does not keep the key)."""
    batch = tl.program_id(2).to(tl.int64)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (key < S)[:, None] & (column < WIDTH)[None, :]
    sums = total + (batch * S + key)[:, None] * WIDTH + column[None, :]
    owed = tl.load(sums, mask=inside, other=0.0)
    for query in range(0, chunk):
        row = batch * chunk + query
        place = tl.load(places + row * S + key, mask=key < S, other=-1)
        offsets = (row * K + place) * WIDTH
        kept = (place >= 0)[:, None] & (column < WIDTH)[None, :]
        owed += tl.load(contributions + offsets[:, None] + column[None, :], mask=kept, other=0.0).to(tl.float32)
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
