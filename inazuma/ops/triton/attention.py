"""Kernels of softmax attention over a set of keys per query, forward and backward (FlashAttention-2, arXiv 2307.08691).

One source serves both kinds of set. A *row* is a query head of a query: row r of a key-value head's group is query
r // N, head r % N, with N = H / G heads to the group.

    SPARSE     a program's rows are heads of one query, its keys are those that `indices` keeps, gathered; with
               PACK > 1 those of PACK neighbouring queries, and the keys those that any of them keeps (`packs.py`)
    otherwise  rows of neighbouring queries lie packed in one tile, and it reads every key from the lowest `first` to
               the highest `last` among them

A head's width is cut in two (`tiles.split`), for a tile's sides must be powers of two: 576 = 512 + 64. With
VALUES_IN_KEYS the values are the first columns of the keys, as in absorbed multi-head latent attention, and are not
loaded twice.
Letters as in `contract.py`.
"""

import triton
import triton.language as tl

from inazuma.ops.triton.pairs import row_of_pair


@triton.jit
def columns(x, offsets, kept, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """`[rows, SIZE]`: from column START on of rows that begin at `offsets`; zeros where not `kept` and past WIDTH."""
    column = START + tl.arange(0, SIZE)
    mask = kept[:, None]
    if START + SIZE > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(x + offsets[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def put_columns(x, offsets, kept, values, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Writes what `columns` would read, in the dtype of `x`."""
    column = START + tl.arange(0, SIZE)
    mask = kept[:, None]
    if START + SIZE > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(x + offsets[:, None] + column[None, :], values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def add_columns(x, offsets, kept, values, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Adds to what `columns` would read, in float32 and in no particular order."""
    column = START + tl.arange(0, SIZE)
    mask = kept[:, None] & (column < WIDTH)[None, :]
    tl.atomic_add(x + offsets[:, None] + column[None, :], values, mask=mask, sem="relaxed")


@triton.jit
def offsets_of(batch, row, head, by_batch, by_row, by_head):
    """Where rows begin, int64: a head times its stride passes 2^31 where heads come before rows in memory."""
    return batch * by_batch + tl.cast(row, tl.int64) * by_row + tl.cast(head, tl.int64) * by_head


@triton.jit
def rows_of_tile(tile, T, N, ROWS: tl.constexpr, SPARSE: tl.constexpr, PACK: tl.constexpr):
    """The query and the head of each row of a tile, int32 `[ROWS]`, and which rows exist."""
    if PACK > 1:
        row = tl.arange(0, ROWS)
        query, head = tile * PACK + row // N, row % N
        exists = (row < PACK * N) & (query < T)
    elif SPARSE:
        blocks = tl.cdiv(N, ROWS)
        head = (tile % blocks) * ROWS + tl.arange(0, ROWS)
        query = tl.zeros_like(head) + tile // blocks
        exists = head < N
    else:
        row = tile * ROWS + tl.arange(0, ROWS)
        query, head = row // N, row % N
        exists = row < T * N
    return query, head, exists


@triton.jit
def spans_of_rows(first, last, batch, query, exists, T, S):
    """`first` and `last` of each row, and the keys `low <= s < high` that cover all of them."""
    begin = tl.load(first + batch * T + query, mask=exists, other=0)
    end = tl.load(last + batch * T + query, mask=exists, other=-1)
    low = tl.min(tl.where(begin <= end, begin, S), 0)
    high = tl.max(end, 0) + 1
    return begin, end, low, high


@triton.jit
def kept_keys(chosen, holders, start, high, N, ROWS: tl.constexpr, KEYS: tl.constexpr, PACK: tl.constexpr):
    """A tile of the keys that a list holds, which of them exist, and which row keeps which (`[1,KEYS]`: all alike)."""
    place = start + tl.arange(0, KEYS)
    key = tl.load(chosen + place, mask=place < high, other=-1)
    read = key >= 0
    if PACK > 1:
        bits = tl.load(holders + place, mask=place < high, other=0).to(tl.int32)
        seen = (bits[None, :] >> (tl.arange(0, ROWS) // N)[:, None]) & 1 > 0
    else:
        seen = read[None, :]
    return key, read, seen


@triton.jit
def attention_forward(
    q,
    k,
    v,
    indices,
    holders,
    counts,
    first,
    last,
    out,
    lse,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_group,
    v_batch,
    v_row,
    v_group,
    T,
    S,
    K,
    N,
    tile_begin,
    scale,
    sink,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    SPARSE: tl.constexpr,
    PACK: tl.constexpr,
    HAS_SINK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of rows from `tile_begin` on, G, B). Writes `out [B,T,H,Dv]` and `lse [B,T,H]`, both contiguous.

    `indices [B,T,K]`; with PACK > 1 the launch's packs have lists of their own: `indices` and `holders` `[B,tiles,K]`,
    of which the first `counts [B,tiles]` count.
    """
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile = tile_begin + tl.program_id(0)
    heads = tl.num_programs(1) * N
    query, head, exists = rows_of_tile(tile, T, N, ROWS, SPARSE, PACK)
    head += group * N
    q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
    q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
    if DK_REST > 0:
        q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
    if PACK > 1:
        pack = batch * tl.num_programs(0) + tl.program_id(0)
        low, high = 0, tl.load(counts + pack)
        chosen = indices + pack * K
        holders += pack * K
    elif SPARSE:
        low, high = 0, K
        chosen = indices + (batch * T + tile // tl.cdiv(N, ROWS)) * K
    else:
        begin, end, low, high = spans_of_rows(first, last, batch, query, exists, T, S)
    if HAS_SINK:  # one more key, whose logit is the sink and whose value is zero
        largest = tl.load(sink + head, mask=exists, other=0.0).to(tl.float32)
        total = tl.full([ROWS], 1.0, tl.float32)
    else:
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, DV_TILE], tl.float32)
    for start in range(low, high, KEYS):
        if SPARSE:
            key, read, seen = kept_keys(chosen, holders, start, high, N, ROWS, KEYS, PACK)
        else:
            key = start + tl.arange(0, KEYS)
            seen = (key[None, :] >= begin[:, None]) & (key[None, :] <= end[:, None])
            read = tl.max(seen.to(tl.int32), 0) > 0  # the others may hold NaN, and 0 * NaN is NaN
        k_offsets = offsets_of(batch, key, group, k_batch, k_row, k_group)
        k_main = columns(k, k_offsets, read, 0, DK_MAIN, DK)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if DK_REST > 0:
            k_rest = columns(k, k_offsets, read, DK_MAIN, DK_REST, DK)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        scores = tl.where(seen, scores * scale, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        base = tl.where(above == float("-inf"), 0.0, above)  # a row that has seen no key yet
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, 1)
        if VALUES_IN_KEYS:
            values = k_main
        else:
            v_offsets = offsets_of(batch, key, group, v_batch, v_row, v_group)
            values = columns(v, v_offsets, read, 0, DV_TILE, DV)
        mix = tl.dot(weights.to(values.dtype), values, mix * shrink[:, None], input_precision="ieee")
        largest = above
    row = (batch * T + query) * heads + head
    some = total > 0
    put_columns(out, row * DV, exists, mix / tl.where(some, total, 1.0)[:, None], 0, DV_TILE, DV)
    logarithm = largest + tl.log(tl.where(some, total, 1.0))
    tl.store(lse + row, tl.where(some, logarithm, float("-inf")), mask=exists)


@triton.jit
def attention_backward_queries(
    q,
    k,
    v,
    indices,
    holders,
    counts,
    first,
    last,
    out,
    lse,
    dout,
    dlse,
    delta,
    dq,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_group,
    v_batch,
    v_row,
    v_group,
    T,
    S,
    K,
    N,
    tile_begin,
    scale,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    SPARSE: tl.constexpr,
    PACK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid as forward. Writes `dq [B,T,H,Dk]` and, for the next kernel, `delta = rowsum(dout * out) - dlse`.

    `out`, `dout`, `lse` and `dlse` are contiguous.
    """
    group, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile = tile_begin + tl.program_id(0)
    heads = tl.num_programs(1) * N
    query, head, exists = rows_of_tile(tile, T, N, ROWS, SPARSE, PACK)
    head += group * N
    row = (batch * T + query) * heads + head
    q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
    q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
    dq_main = tl.zeros([ROWS, DK_MAIN], tl.float32)
    if DK_REST > 0:
        q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
        dq_rest = tl.zeros([ROWS, DK_REST], tl.float32)
    slope = columns(dout, row * DV, exists, 0, DV_TILE, DV)
    mix = columns(out, row * DV, exists, 0, DV_TILE, DV)
    drop = tl.sum(slope.to(tl.float32) * mix.to(tl.float32), 1) - tl.load(dlse + row, mask=exists, other=0.0)
    tl.store(delta + row, drop, mask=exists)
    base = tl.load(lse + row, mask=exists, other=0.0)
    base = tl.where(base == float("-inf"), 0.0, base)  # no key is seen there
    if PACK > 1:
        pack = batch * tl.num_programs(0) + tl.program_id(0)
        low, high = 0, tl.load(counts + pack)
        chosen = indices + pack * K
        holders += pack * K
    elif SPARSE:
        low, high = 0, K
        chosen = indices + (batch * T + tile // tl.cdiv(N, ROWS)) * K
    else:
        begin, end, low, high = spans_of_rows(first, last, batch, query, exists, T, S)
    for start in range(low, high, KEYS):
        if SPARSE:
            key, read, seen = kept_keys(chosen, holders, start, high, N, ROWS, KEYS, PACK)
        else:
            key = start + tl.arange(0, KEYS)
            seen = (key[None, :] >= begin[:, None]) & (key[None, :] <= end[:, None])
            read = tl.max(seen.to(tl.int32), 0) > 0
        k_offsets = offsets_of(batch, key, group, k_batch, k_row, k_group)
        k_main = columns(k, k_offsets, read, 0, DK_MAIN, DK)
        scores = tl.dot(q_main, tl.trans(k_main), input_precision="ieee")
        if DK_REST > 0:
            k_rest = columns(k, k_offsets, read, DK_MAIN, DK_REST, DK)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if VALUES_IN_KEYS:
            values = k_main
        else:
            v_offsets = offsets_of(batch, key, group, v_batch, v_row, v_group)
            values = columns(v, v_offsets, read, 0, DV_TILE, DV)
        dweights = tl.dot(slope, tl.trans(values), input_precision="ieee")
        weights = tl.exp(tl.where(seen, scores * scale - base[:, None], float("-inf")))
        dscores = (weights * (dweights - drop[:, None])).to(k_main.dtype)
        dq_main = tl.dot(dscores, k_main, dq_main, input_precision="ieee")
        if DK_REST > 0:
            dq_rest = tl.dot(dscores, k_rest, dq_rest, input_precision="ieee")
    put_columns(dq, row * DK, exists, dq_main * scale, 0, DK_MAIN, DK)
    if DK_REST > 0:
        put_columns(dq, row * DK, exists, dq_rest * scale, DK_MAIN, DK_REST, DK)


@triton.jit
def attention_backward_keys(
    q,
    k,
    v,
    indices,
    readers,
    starts,
    first,
    last,
    ranges,
    lse,
    dout,
    delta,
    dk,
    dv,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_group,
    v_batch,
    v_row,
    v_group,
    chunk_begin,
    T,
    S,
    K,
    N,
    WORDS,
    scale,
    DK: tl.constexpr,
    DK_MAIN: tl.constexpr,
    DK_REST: tl.constexpr,
    DV: tl.constexpr,
    DV_TILE: tl.constexpr,
    MERGED: tl.constexpr,
    SPARSE: tl.constexpr,
    ATOMIC: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Grid (tiles of keys, G, B): what the rows that read a tile's keys owe to its `dk` and `dv`.

    SPARSE: tiles are of the pairs (query, kept key) of the chunk's queries, those from `chunk_begin` on, and
    `dk [pairs,G,Dk]`, `dv [pairs,G,Dv]` hold what each pair contributes, for `sum_pairs`, in the order that `readers`
    and `starts` give; if ATOMIC, it is added to the gradients in float32. Otherwise tiles are of the S keys,
    `ranges [B,tiles,2]` says which queries can see them, and `dk [PARTS,B,S,G,Dk]`, `dv [PARTS,B,S,G,Dv]` what each of
    PARTS equal shares of these queries adds to the gradients.
    With MERGED the values are the first columns of the keys, and `dk` holds what both are owed: there is no `dv`.
    Values are loaded even where the keys hold them: once a program, and sharing one tile's registers made them spill.
    """
    tile, group, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    groups = tl.num_programs(1)
    heads = groups * N
    if SPARSE:
        blocks = tl.cdiv(K, KEYS)
        query_low = chunk_begin + tile // blocks
        query_high = query_low + 1
        place = (tile % blocks) * KEYS + tl.arange(0, KEYS)
        key = tl.load(indices + (batch * T + query_low) * K + place, mask=place < K, other=-1)
        read = key >= 0
        if ATOMIC:
            write = batch * S + key
        else:
            write = row_of_pair(readers, starts, (batch * S + key) * WORDS, query_low - chunk_begin, read)
    else:
        tiles = tl.num_programs(0) // PARTS
        part, tile = tile // tiles, tile % tiles
        query_low = tl.load(ranges + (batch * tiles + tile) * 2)
        query_high = tl.load(ranges + (batch * tiles + tile) * 2 + 1)
        share = tl.cdiv(query_high - query_low, PARTS)
        query_low = tl.minimum(query_low + part * share, query_high)
        query_high = tl.minimum(query_low + share, query_high)
        key = tile * KEYS + tl.arange(0, KEYS)
        read = key < S
        write = (part * tl.num_programs(2) + batch) * S + key
    k_offsets = offsets_of(batch, key, group, k_batch, k_row, k_group)
    k_main = columns(k, k_offsets, read, 0, DK_MAIN, DK)
    dk_main = tl.zeros([KEYS, DK_MAIN], tl.float32)
    if DK_REST > 0:
        k_rest = columns(k, k_offsets, read, DK_MAIN, DK_REST, DK)
        dk_rest = tl.zeros([KEYS, DK_REST], tl.float32)
    v_offsets = offsets_of(batch, key, group, v_batch, v_row, v_group)
    values = columns(v, v_offsets, read, 0, DV_TILE, DV)
    if not MERGED:
        dvalues = tl.zeros([KEYS, DV_TILE], tl.float32)
    for start in range(query_low * N, query_high * N, ROWS):
        row = start + tl.arange(0, ROWS)
        exists = row < query_high * N
        query, head = row // N, row % N + group * N
        if SPARSE:
            seen = read[:, None] & exists[None, :]
        else:
            begin = tl.load(first + batch * T + query, mask=exists, other=0)
            end = tl.load(last + batch * T + query, mask=exists, other=-1)
            seen = (key[:, None] >= begin[None, :]) & (key[:, None] <= end[None, :])
        q_offsets = offsets_of(batch, query, head, q_batch, q_row, q_head)
        place_of_row = (batch * T + query) * heads + head
        base = tl.load(lse + place_of_row, mask=exists, other=0.0)
        base = tl.where(base == float("-inf"), 0.0, base)
        drop = tl.load(delta + place_of_row, mask=exists, other=0.0)
        q_main = columns(q, q_offsets, exists, 0, DK_MAIN, DK)
        scores = tl.dot(k_main, tl.trans(q_main), input_precision="ieee")
        if DK_REST > 0:
            q_rest = columns(q, q_offsets, exists, DK_MAIN, DK_REST, DK)
            scores = tl.dot(k_rest, tl.trans(q_rest), scores, input_precision="ieee")
        weights = tl.exp(tl.where(seen, scores * scale - base[None, :], float("-inf")))
        slope = columns(dout, place_of_row * DV, exists, 0, DV_TILE, DV)
        if MERGED:
            dk_main = tl.dot(weights.to(slope.dtype), slope, dk_main, input_precision="ieee")
        else:
            dvalues = tl.dot(weights.to(slope.dtype), slope, dvalues, input_precision="ieee")
        dweights = tl.dot(values, tl.trans(slope), input_precision="ieee")
        # A key that nobody sees may hold NaN, and 0 * NaN is NaN.
        dscores = tl.where(seen, weights * (dweights - drop[None, :]) * scale, 0.0).to(q_main.dtype)
        dk_main = tl.dot(dscores, q_main, dk_main, input_precision="ieee")
        if DK_REST > 0:
            dk_rest = tl.dot(dscores, q_rest, dk_rest, input_precision="ieee")
    write = write.to(tl.int64) * groups + group
    if ATOMIC:
        add_columns(dk, write * DK, read, dk_main, 0, DK_MAIN, DK)
        if DK_REST > 0:
            add_columns(dk, write * DK, read, dk_rest, DK_MAIN, DK_REST, DK)
        if not MERGED:
            add_columns(dv, write * DV, read, dvalues, 0, DV_TILE, DV)
    else:
        put_columns(dk, write * DK, read, dk_main, 0, DK_MAIN, DK)
        if DK_REST > 0:
            put_columns(dk, write * DK, read, dk_rest, DK_MAIN, DK_REST, DK)
        if not MERGED:
            put_columns(dv, write * DV, read, dvalues, 0, DV_TILE, DV)
