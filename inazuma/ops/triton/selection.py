"""Kernels of token selection: the indexer's scores in a bounded slab, then the k best of each row of it.

The order is total. Scores become int32 keys that compare as they do, -0.0 as 0.0; all that is not finite becomes the
lowest key; of equal keys the lower index wins.
"""

import triton
import triton.language as tl

from inazuma.ops.triton.attention import columns, offsets_of, spans_of_rows


@triton.jit
def index_scores(
    index_q,
    index_k,
    index_w,
    first,
    last,
    slab,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    chunk_begin,
    chunk_end,
    T,
    S,
    I,  # noqa: E741  (the design's letter for index heads)
    C: tl.constexpr,
    C_TILE: tl.constexpr,
    ORDERED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of keys, tiles of the chunk's queries, B). Writes `slab [B,chunk,S]`, where some query sees the key.

    I[t,s] = sum_i w[t,i] relu(q[t,i] . k[s]) (DeepSeek-V3.2 report, equation 1), in float32, or ORDERED as int32.
    `index_w [B,T,I]` is float32 and contiguous. A tile that no query sees is left as it was.
    """
    tile, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    query = chunk_begin + tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    exists = query < chunk_end
    begin, end, low, high = spans_of_rows(first, last, batch, query, exists, T, S)
    if (tile * KEYS < high) & ((tile + 1) * KEYS > low):
        key = tile * KEYS + tl.arange(0, KEYS)
        seen = (key[None, :] >= begin[:, None]) & (key[None, :] <= end[:, None])
        keys = columns(index_k, batch * k_batch + key.to(tl.int64) * k_row, key < S, 0, C_TILE, C)
        scores = tl.zeros([QUERIES, KEYS], tl.float32)
        for head in range(0, I):
            q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
            queries = columns(index_q, q_offsets, exists, 0, C_TILE, C)
            weight = tl.load(index_w + (batch * T + query) * I + head, mask=exists, other=0.0)
            products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
            # Not tl.maximum, which turns NaN into 0: what is not finite must stay so.
            scores += weight[:, None] * tl.where(products < 0, 0.0, products)
        if ORDERED:
            bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
            ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
            finite = (bits & 0x7F800000) != 0x7F800000
            scores = tl.where(finite, ordered, -0x80000000)
        chunk = chunk_end - chunk_begin
        place = (batch * chunk + query - chunk_begin) * S
        tl.store(slab + place[:, None] + key[None, :], scores, mask=seen)


@triton.jit
def unsigned(key):
    """Ordered int32 as uint32 of the same order."""
    return key.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def highest(source, size, K, BLOCK: tl.constexpr):
    """The K-th highest of `source[:size]`, more than K, as unsigned, and how many are above it.

    It is found two bits at a time from the top: of the prefixes that continue the one found so far, the largest that K
    keys or more reach.
    """
    threshold = tl.full([], 0, tl.uint32)
    above = 0
    one = tl.full([], 1 << 30, tl.uint32)
    for _ in range(0, 16):
        reach_1 = tl.zeros([BLOCK], tl.int32)
        reach_2 = tl.zeros([BLOCK], tl.int32)
        reach_3 = tl.zeros([BLOCK], tl.int32)
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            key = unsigned(tl.load(source + place, mask=place < size, other=-0x80000000))
            reach_1 += (key >= threshold + one).to(tl.int32)
            reach_2 += (key >= threshold + 2 * one).to(tl.int32)
            reach_3 += (key >= threshold + 3 * one).to(tl.int32)
        count_1, count_2, count_3 = tl.sum(reach_1, 0), tl.sum(reach_2, 0), tl.sum(reach_3, 0)
        if count_3 >= K:
            threshold += 3 * one
        elif count_2 >= K:
            threshold += 2 * one
            above = count_3
        elif count_1 >= K:
            threshold += one
            above = count_2
        else:
            above = count_1
        one = one >> 2
    return threshold, above


@triton.jit
def bound_by_sample(source, size, K, SAMPLE: tl.constexpr):
    """A key that the K highest of `source[:size]` very likely reach, and few others: of SAMPLE keys at equal steps, the
    one that as many reach as are expected of the K highest, and four standard deviations more."""
    key = unsigned(tl.load(source + tl.arange(0, SAMPLE) * (size // SAMPLE)))
    expected = K * (SAMPLE / size.to(tl.float32))
    rank = (expected + 4 * tl.sqrt(expected) + 4).to(tl.int32)
    bound = tl.full([], 0, tl.uint32)
    one = tl.full([], 1 << 31, tl.uint32)
    for _ in range(0, 32):
        if tl.sum((key >= bound + one).to(tl.int32), 0) >= rank:
            bound += one
        one = one >> 1
    return bound


@triton.jit
def keep_best(
    slab,
    first,
    last,
    indices,
    candidates,
    chunk_begin,
    chunk_size,
    T,
    S,
    K,
    ROOM: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (queries of the chunk, B). Writes the row of `indices [B,T,K]`: the K highest keys, ascending, then -1.

    A long row is read from memory as seldom as can be: a sample bounds the K highest, those that reach the bound go to
    `candidates [B,chunk,2,ROOM]` (their keys and places), and the search goes on among them. Where the sample misled,
    or ROOM is too small (0: always), it goes through the whole row.
    """
    batch = tl.program_id(1).to(tl.int64)
    query = chunk_begin + tl.program_id(0)
    begin, end = tl.load(first + batch * T + query), tl.load(last + batch * T + query)
    source = slab + (batch * chunk_size + tl.program_id(0)) * S + begin
    size = end - begin + 1
    listed = 0
    if ROOM > 0:
        keys = candidates + (batch * chunk_size + tl.program_id(0)) * 2 * ROOM
        places = keys + ROOM
        if size >= tl.maximum(4 * K, 2 * SAMPLE):
            bound = bound_by_sample(source, size, K, SAMPLE)
            count = 0
            for start in range(0, size, BLOCK):
                place = start + tl.arange(0, BLOCK)
                key = tl.load(source + place, mask=place < size, other=-0x80000000)
                reaches = (place < size) & (unsigned(key) >= bound)
                rank = count + tl.cumsum(reaches.to(tl.int32), 0) - 1
                tl.store(keys + rank, key, mask=reaches & (rank < ROOM))
                tl.store(places + rank, place, mask=reaches & (rank < ROOM))
                count += tl.sum(reaches.to(tl.int32), 0)
            tl.debug_barrier()  # what a thread wrote, others read
            if (count >= K) & (count <= ROOM):
                source, size, listed = keys, count, 1
    threshold = tl.full([], 0, tl.uint32)
    above = 0
    if size > K:
        threshold, above = highest(source, size, K, BLOCK)
    room = K - above
    kept, ties = 0, 0
    answer = indices + (batch * T + query) * K
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        exists = at < size
        key = unsigned(tl.load(source + at, mask=exists, other=-0x80000000))
        tie = (exists & (key == threshold)).to(tl.int32)
        keep = exists & ((size <= K) | (key > threshold) | ((tie > 0) & (ties + tl.cumsum(tie, 0) <= room)))
        rank = kept + tl.cumsum(keep.to(tl.int32), 0) - 1
        place = at
        if ROOM > 0:
            place = tl.where(listed > 0, tl.load(places + at, mask=exists & (listed > 0), other=0), at)
        tl.store(answer + rank, begin + place, mask=keep)
        kept += tl.sum(keep.to(tl.int32), 0)
        ties += tl.sum(tie, 0)
    for start in range(kept, K, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(answer + place, tl.full([BLOCK], -1, tl.int32), mask=place < K)
