"""Kernels of the indexer's loss, mean KL(p || softmax(I)), and of its gradient.

The queries are worked off in chunks, each in four steps over a slab `[B,chunk,L]`: L = K kept keys of a query
(SPARSE), or L = S keys of which it sees some. The scores I and the target p, head-summed, fill two slabs; each row then
gives its loss, and g = softmax(I) - p in the target's place; g gives the gradients (V3.2 report, equations 3 and 4,
differentiated):

    dw[t,i] = sum_s g relu(a)     dq[t,i] = sum_s g w 1[a > 0] k[s]     dk[s] = sum_t,i g w 1[a > 0] q[t,i]

with a[t,i,s] = q[t,i] . k[s]. A *row* is an index head of a query, as in `attention.py`. Letters as in `contract.py`.
"""

import triton
import triton.language as tl

from inazuma.ops.triton.attention import add_columns, columns, offsets_of, put_columns, rows_of_tile, spans_of_rows
from inazuma.ops.triton.pairs import row_of_pair


@triton.jit
def kept_scores_and_target(
    index_q,
    index_k,
    index_w,
    q,
    k,
    lse,
    indices,
    scores,
    target,
    iq_batch,
    iq_row,
    iq_head,
    ik_batch,
    ik_row,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_group,
    chunk_begin,
    chunk_size,
    T,
    K,
    N,
    G,
    I,  # noqa: E741  (the design's letter for index heads)
    scale,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    C: tl.constexpr,
    C_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (chunk's queries x tiles of kept keys, B). Writes `scores` and `target` `[B,chunk,K]`, float32."""
    batch = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(K, KEYS)
    query = tl.program_id(0) // blocks
    place = (tl.program_id(0) % blocks) * KEYS + tl.arange(0, KEYS)
    slab_offsets = (batch * chunk_size + query) * K + place
    query += chunk_begin
    row = batch * T + query
    key = tl.load(indices + row * K + place, mask=place < K, other=-1)
    read = key >= 0
    mass = tl.zeros([KEYS], tl.float32)
    for group in range(0, G):
        k_offsets = offsets_of(batch, key, group, k_batch, k_row, k_group)
        k_main = columns(k, k_offsets, read, 0, DK_MAIN, DK)
        if DK_REST > 0:
            k_rest = columns(k, k_offsets, read, DK_MAIN, DK_REST, DK)
        for start in range(0, N, ROWS):
            exists = start + tl.arange(0, ROWS) < N
            head = group * N + start + tl.arange(0, ROWS)
            q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
            q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
            logits = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
            if DK_REST > 0:
                q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
                logits = tl.dot(q_rest, tl.trans(k_rest), logits, input_precision="ieee")
            base = tl.load(lse + row * (G * N) + head, mask=exists, other=float("inf"))
            logits = logits * scale - base[:, None]
            mass += tl.sum(tl.exp(tl.where(read[None, :], logits, float("-inf"))), 0)
    tl.store(target + slab_offsets, mass / (G * N), mask=read)

    index_keys = columns(index_k, batch * ik_batch + key.to(tl.int64) * ik_row, read, 0, C_TILE, C)
    score = tl.zeros([KEYS], tl.float32)
    for start in range(0, I, ROWS):
        head = start + tl.arange(0, ROWS)
        q_offsets = offsets_of(batch, query, head, iq_batch, iq_row, iq_head)
        index_queries = columns(index_q, q_offsets, head < I, 0, C_TILE, C)
        weight = tl.load(index_w + row * I + head, mask=head < I, other=0.0)
        products = tl.dot(index_queries, tl.trans(index_keys), input_precision="ieee")
        score += tl.sum(weight[:, None] * tl.maximum(products, 0.0), 0)
    tl.store(scores + slab_offsets, score, mask=read)


@triton.jit
def visible_target(
    q,
    k,
    lse,
    first,
    last,
    target,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_group,
    chunk_begin,
    chunk_end,
    T,
    S,
    N,
    G,
    scale,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of keys, tiles of the chunk's queries, B). Writes `target [B,chunk,S]` where a query sees the key."""
    tile, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    query = chunk_begin + tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    exists = query < chunk_end
    begin, end, low, high = spans_of_rows(first, last, batch, query, exists, T, S)
    if (tile * KEYS < high) & ((tile + 1) * KEYS > low):
        key = tile * KEYS + tl.arange(0, KEYS)
        seen = (key[None, :] >= begin[:, None]) & (key[None, :] <= end[:, None])
        mass = tl.zeros([QUERIES, KEYS], tl.float32)
        for group in range(0, G):
            k_offsets = offsets_of(batch, key, group, k_batch, k_row, k_group)
            k_main = columns(k, k_offsets, key < S, 0, DK_MAIN, DK)
            if DK_REST > 0:
                k_rest = columns(k, k_offsets, key < S, DK_MAIN, DK_REST, DK)
            for head in range(group * N, (group + 1) * N):
                q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
                q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
                logits = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
                if DK_REST > 0:
                    q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
                    logits = tl.dot(q_rest, tl.trans(k_rest), logits, input_precision="ieee")
                base = tl.load(lse + (batch * T + query) * (G * N) + head, mask=exists, other=0.0)
                logits = logits * scale - base[:, None]
                mass += tl.exp(tl.where(seen, logits, float("-inf")))
        place = (batch * (chunk_end - chunk_begin) + query - chunk_begin) * S
        tl.store(target + place[:, None] + key[None, :], mass / (G * N), mask=seen)


@triton.jit
def loss_of_rows(
    scores, target, indices, first, last, loss, chunk_begin, chunk_size, T, L, SPARSE: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (chunk's queries, B). Writes `loss [B,T]`, a query's KL in nats, and g into `target`."""
    batch = tl.program_id(1).to(tl.int64)
    query = chunk_begin + tl.program_id(0)
    row = (batch * chunk_size + tl.program_id(0)) * L
    if SPARSE:
        low, high = 0, L
    else:
        low = tl.load(first + batch * T + query)
        high = tl.load(last + batch * T + query) + 1
    largest, total, mass = float("-inf"), 0.0, 0.0
    for start in range(low, high, BLOCK):
        place = start + tl.arange(0, BLOCK)
        seen = place < high
        if SPARSE:
            seen = tl.load(indices + (batch * T + query) * L + place, mask=seen, other=-1) >= 0
        score = tl.load(scores + row + place, mask=seen, other=float("-inf"))
        above = tl.maximum(largest, tl.max(score, 0))
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(score - base), 0)
        mass += tl.sum(tl.load(target + row + place, mask=seen, other=0.0), 0)
        largest = above
    logarithm = tl.log(tl.where(total > 0, total, 1.0))
    divergence = 0.0
    for start in range(low, high, BLOCK):
        place = start + tl.arange(0, BLOCK)
        seen = place < high
        if SPARSE:
            seen = tl.load(indices + (batch * T + query) * L + place, mask=seen, other=-1) >= 0
        student = tl.load(scores + row + place, mask=seen, other=0.0) - largest - logarithm
        teacher = tl.load(target + row + place, mask=seen, other=0.0)
        some = teacher > 0
        divergence += tl.sum(tl.where(some, teacher * (tl.log(tl.where(some, teacher, 1.0)) - student), 0.0), 0)
        # The target sums to 1 up to rounding; counted as it is, g sums to 0, and one visible key gives g = 0.
        tl.store(target + row + place, tl.exp(student) * mass - teacher, mask=seen)
    tl.store(loss + batch * T + query, divergence)


@triton.jit
def index_backward_queries(
    index_q,
    index_k,
    index_w,
    g,
    indices,
    first,
    last,
    factor,
    dq,
    dw,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    chunk_begin,
    chunk_size,
    T,
    S,
    L,
    I,  # noqa: E741
    C: tl.constexpr,
    C_TILE: tl.constexpr,
    SPARSE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of the chunk's rows, B). Writes `dq [B,T,I,C]` and `dw [B,T,I]`, times the scalar `factor`."""
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    query, head, exists = rows_of_tile(tile, chunk_size, I, ROWS, SPARSE, 1)
    slab_row = (batch * chunk_size + query) * L
    query += chunk_begin
    row = (batch * T + query) * I + head
    q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
    queries = columns(index_q, q_offsets, exists, 0, C_TILE, C)
    weight = tl.load(index_w + row, mask=exists, other=0.0)
    if SPARSE:
        low, high = 0, L
        slab = (batch * chunk_size + tile // tl.cdiv(I, ROWS)) * L
        chosen = indices + (batch * T + chunk_begin + tile // tl.cdiv(I, ROWS)) * L
    else:
        begin, end, low, high = spans_of_rows(first, last, batch, query, exists, T, L)
    dqueries = tl.zeros([ROWS, C_TILE], tl.float32)
    dweight = tl.zeros([ROWS], tl.float32)
    for start in range(low, high, KEYS):
        place = start + tl.arange(0, KEYS)
        if SPARSE:
            key = tl.load(chosen + place, mask=place < L, other=-1)
            read = key >= 0
            slope = tl.load(g + slab + place, mask=read, other=0.0)[None, :]
        else:
            key = place
            seen = (key[None, :] >= begin[:, None]) & (key[None, :] <= end[:, None])
            read = tl.max(seen.to(tl.int32), 0) > 0  # the others may hold NaN, and 0 * NaN is NaN
            slope = tl.load(g + slab_row[:, None] + place[None, :], mask=seen, other=0.0)
        keys = columns(index_k, batch * k_batch + key.to(tl.int64) * k_row, read, 0, C_TILE, C)
        products = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        dweight += tl.sum(slope * tl.maximum(products, 0.0), 1)
        dproducts = tl.where(products > 0, slope * weight[:, None], 0.0)
        dqueries = tl.dot(dproducts.to(keys.dtype), keys, dqueries, input_precision="ieee")
    times = tl.load(factor)
    put_columns(dq, row * C, exists, dqueries * times, 0, C_TILE, C)
    tl.store(dw + row, dweight * times, mask=exists)


@triton.jit
def index_backward_keys(
    index_q,
    index_k,
    index_w,
    g,
    indices,
    readers,
    starts,
    first,
    last,
    ranges,
    dk,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    chunk_begin,
    chunk_size,
    T,
    S,
    L,
    I,  # noqa: E741
    WORDS,
    C: tl.constexpr,
    C_TILE: tl.constexpr,
    SPARSE: tl.constexpr,
    ATOMIC: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of keys, B): what the chunk's rows owe to index keys, float32.

    SPARSE: tiles are of the chunk's pairs (query, kept key); writes `dk [pairs,C]`, for `sum_pairs`, in the order that
    `readers` and `starts` give, or if ATOMIC adds to `dk [B,S,C]`. Otherwise tiles are of the S = L keys,
    `ranges [B,tiles,2]` says which queries can see them, and it adds to `dk [B,S,C]`.
    """
    tile, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if SPARSE:
        blocks = tl.cdiv(L, KEYS)
        query_low = tile // blocks
        query_high = query_low + 1
        place = (tile % blocks) * KEYS + tl.arange(0, KEYS)
        key = tl.load(indices + (batch * T + chunk_begin + query_low) * L + place, mask=place < L, other=-1)
        read = key >= 0
        write = batch * S + key
        if not ATOMIC:
            write = row_of_pair(readers, starts, write * WORDS, query_low, read)
    else:
        query_low = tl.load(ranges + (batch * tl.num_programs(0) + tile) * 2) - chunk_begin
        query_high = tl.load(ranges + (batch * tl.num_programs(0) + tile) * 2 + 1) - chunk_begin
        place = tile * KEYS + tl.arange(0, KEYS)
        write = batch * L + place
        key = place
        read = key < L
    keys = columns(index_k, batch * k_batch + key.to(tl.int64) * k_row, read, 0, C_TILE, C)
    dkeys = tl.zeros([KEYS, C_TILE], tl.float32)
    for start in range(query_low * I, query_high * I, ROWS):
        row = start + tl.arange(0, ROWS)
        exists = row < query_high * I
        query, head = row // I, row % I
        slab_row = (batch * chunk_size + query) * L
        query += chunk_begin
        if SPARSE:
            seen = read[:, None] & exists[None, :]
        else:
            begin = tl.load(first + batch * T + query, mask=exists, other=0)
            end = tl.load(last + batch * T + query, mask=exists, other=-1)
            seen = (key[:, None] >= begin[None, :]) & (key[:, None] <= end[None, :])
        slope = tl.load(g + place[:, None] + slab_row[None, :], mask=seen, other=0.0)
        weight = tl.load(index_w + (batch * T + query) * I + head, mask=exists, other=0.0)
        q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
        queries = columns(index_q, q_offsets, exists, 0, C_TILE, C)
        products = tl.dot(keys, tl.trans(queries), input_precision="ieee")
        dproducts = tl.where(products > 0, slope * weight[None, :], 0.0)
        dkeys = tl.dot(dproducts.to(queries.dtype), queries, dkeys, input_precision="ieee")
    write = write.to(tl.int64) * C
    if ATOMIC:
        add_columns(dk, write, read, dkeys, 0, C_TILE, C)
    else:
        if not SPARSE:
            dkeys += columns(dk, write, read, 0, C_TILE, C)
        put_columns(dk, write, read, dkeys, 0, C_TILE, C)
