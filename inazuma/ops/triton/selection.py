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
def keep_best(slab, first, last, indices, chunk_begin, chunk_size, T, S, K, BLOCK: tl.constexpr):
    """Grid (queries of the chunk, B). Writes the row of `indices [B,T,K]`: the K highest keys, ascending, then -1.

    The K-th highest key is found two bits at a time from the top: of the prefixes that continue the one found so far,
    the largest that K keys or more reach. Keys are read as unsigned, offset by 2^31.
    """
    batch = tl.program_id(1).to(tl.int64)
    query = chunk_begin + tl.program_id(0)
    begin, end = tl.load(first + batch * T + query), tl.load(last + batch * T + query)
    row = slab + (batch * chunk_size + tl.program_id(0)) * S
    threshold = tl.full([], 0, tl.uint32)
    above = 0  # keys that reach more than the threshold
    if end - begin >= K:  # otherwise all are kept
        one = tl.full([], 1 << 30, tl.uint32)
        for _ in range(0, 16):
            reach_1 = tl.zeros([BLOCK], tl.int32)
            reach_2 = tl.zeros([BLOCK], tl.int32)
            reach_3 = tl.zeros([BLOCK], tl.int32)
            for start in range(begin, end + 1, BLOCK):
                place = start + tl.arange(0, BLOCK)
                key = tl.load(row + place, mask=place <= end, other=-0x80000000)
                key = key.to(tl.uint32, bitcast=True) ^ 0x80000000
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
    room = K - above
    kept, ties = 0, 0
    answer = indices + (batch * T + query) * K
    for start in range(begin, end + 1, BLOCK):
        place = start + tl.arange(0, BLOCK)
        exists = place <= end
        key = tl.load(row + place, mask=exists, other=-0x80000000).to(tl.uint32, bitcast=True) ^ 0x80000000
        tie = (exists & (key == threshold)).to(tl.int32)
        if end - begin < K:
            keep = exists
        else:
            keep = exists & ((key > threshold) | ((tie > 0) & (ties + tl.cumsum(tie, 0) <= room)))
        rank = kept + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(answer + rank, place, mask=keep)
        kept += tl.sum(keep.to(tl.int32), 0)
        ties += tl.sum(tie, 0)
    for start in range(kept, K, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(answer + place, tl.full([BLOCK], -1, tl.int32), mask=place < K)
