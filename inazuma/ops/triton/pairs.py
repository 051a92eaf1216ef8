"""Kernels of the inverted map: which queries read a key.

A query's kept keys are gathered, so its contributions to them must be scattered back. Atomic additions would do that
in another order each time; here the contributions are written out, one row for each pair (query, key), and each key
sums its own in the order of the queries. So gradients are the same bits in every run.
"""

import triton
import triton.language as tl


@triton.jit
def sum_pairs(contributions, order, starts, total, WIDTH, COLUMNS: tl.constexpr):
    """Grid (keys, tiles of columns). Adds to `total [keys, WIDTH]` its rows of `contributions [pairs, WIDTH]`, float32.

    `order` lists the pairs sorted by key, and those of key s are `starts[s] <= i < starts[s + 1]` (int64).
    """
    key = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < WIDTH
    begin, end = tl.load(starts + key), tl.load(starts + key + 1)
    if begin < end:
        owed = tl.load(total + key * WIDTH + column, mask=mask, other=0.0)
        for i in range(begin, end):
            pair = tl.load(order + i)
            owed += tl.load(contributions + pair * WIDTH + column, mask=mask, other=0.0)
        tl.store(total + key * WIDTH + column, owed, mask=mask)


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
