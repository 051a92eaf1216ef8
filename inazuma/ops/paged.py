"""Selection and attention over paged caches, for serving: here is their definition in plain PyTorch, on any device.

    N queries, those of one sequence together    B sequences             P pages of a sequence's table
    H query heads                                G key-value heads       D width of a head (Dv of values)
    I index heads                                C index width           K kept tokens

A cache is a `Pool` of pages of `PAGE` tokens. A sequence is a row of `tables`: position p lies in page
`tables[row, p // PAGE]` at offset `p % PAGE`, which is slot `page * PAGE + offset` of the pool; what stands in a table
behind a sequence's end is never looked at. Query n belongs to the sequence `row[n]`, stands at the position `last[n]`
and sees the positions `0 .. last[n]`, none where that is -1. Scores, order and formulas are those of `contract.py` and
`reference.py`; inference only, there are no gradients.

A query's result depends on its own numbers and its sequence alone, to the bit: not on the other queries of a call, on
how a prompt is cut into chunks, on which pages a sequence has, or (in C++) on the number of threads. On the CPU
`native/paged.cpp` does the work wherever the library is there (`cpu/paged.py`). On a GPU `gathered.py` does: the same
to rounding, but the last bits may depend on the other queries of a call, and nobody checks the numbers in `tables`,
`row`, `last` and `indices`, for which one would have to wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops import gathered, reference
from inazuma.ops.contract import Spans, check_kept
from inazuma.ops.cpu import paged as cpu
from inazuma.ops.pool import PAGE, Pool, told


@torch.no_grad()
def select(index_q: Tensor, index_w: Tensor, pool: Pool, tables: Tensor, row: Tensor, last: Tensor, k: int) -> Tensor:
    """The k positions of each query that the lightning indexer scores highest.

    Args:
        index_q: float32 `[N,I,C]`. index_w: float32 `[N,I]`, all scales folded in.
        pool: the index keys, G = 1, D = C; on a CPU by column.
        tables: int32 `[B,P]`. row, last: int32 `[N]`, the sequence and the position of each query.
        k: how many to keep; may exceed what a query sees.

    Returns:
        int32 `[N,k]`, ascending, then -1 where a query sees fewer than k positions (it keeps all of them).

    Raises:
        UserError: a shape, dtype, device, row, position or page that does not fit.
    """
    check_kept(k)
    _check(index_q, "index_q", (None, None, pool.width), "N,I,C", torch.float32)
    _check(index_w, "index_w", index_q.shape[:2], "N,I", torch.float32)
    if pool.heads != 1:
        raise UserError(f"pool: index keys have one head, this pool has {pool.heads}")
    if pool.native is not None and not pool.by_column:
        raise UserError("pool: on a CPU index keys lie by column")
    _check_queries(index_q, (pool,), tables, row, last)
    if pool.native is not None:
        with told(lambda: _check_places((pool,), tables, row, last)):
            return cpu.select(index_q, index_w, pool.native, tables, row, last, k)
    if index_q.is_cuda:
        return gathered.select(index_q, index_w, pool, tables, row, last, k)
    _check_places((pool,), tables, row, last)
    out = torch.full((len(index_q), k), -1, dtype=torch.int32, device=index_q.device)
    index_q = pool.rounded(index_q)
    for queries, slots in _sequences(tables, row, last):
        keys = pool.read(slots).transpose(0, 1)
        for n in queries:
            spans = Spans(*torch.tensor([0, int(last[n])], device=keys.device).view(2, 1, 1))
            one = slice(n, n + 1)
            seen = keys[:, : int(last[n]) + 1]
            out[n] = reference.select_tokens(index_q[one, None], seen, index_w[one, None], k, spans)[0, 0]
    return out


@torch.no_grad()
def attend(
    q: Tensor,
    keys: Pool,
    values: Pool | None,
    tables: Tensor,
    row: Tensor,
    last: Tensor,
    scale: float,
    indices: Tensor | None = None,
    value_width: int | None = None,
) -> Tensor:
    """Softmax attention of each query over what it sees, or over the positions that were selected for it.

    Args:
        q: float32 `[N,H,D]`; head h reads key-value head h // (H / G).
        keys, values: pools of G heads. values None: absorbed multi-head latent attention, G = 1, the values are the
            first `value_width` columns of the keys.
        tables: int32 `[B,P]`. row, last: int32 `[N]`, the sequence and the position of each query.
        scale: of the scores.
        indices: int32 `[N,K]`, positions up to `last`, none twice in a row; -1 is an empty place. None: every position.

    Returns:
        float32 `[N,H,Dv]`; zeros for a query that reads nothing.

    Raises:
        UserError: a shape, dtype, device, row, position, index or page that does not fit.
    """
    _check(q, "q", (None, None, keys.width), "N,H,D", torch.float32)
    if q.shape[1] % keys.heads:
        raise UserError(f"q: {q.shape[1]} query heads cannot be shared out among {keys.heads} key-value heads")
    if values is None:
        if keys.heads != 1 or value_width is None or not 1 <= value_width <= keys.width:
            raise UserError(
                "values: None means that they are the first value_width columns of keys of one head; got "
                f"{keys.heads} heads of width {keys.width}, value_width {value_width}"
            )
    elif value_width is not None or values.heads != keys.heads:
        raise UserError(
            f"values: expected a pool of {keys.heads} heads as the keys', and no value_width; got {values.heads} heads "
            f"and value_width {value_width}"
        )
    pools = (keys,) if values is None else (keys, values)
    if any(pool.by_column for pool in pools):
        raise UserError("keys, values: expected pools by row, got one by column")
    _check_queries(q, pools, tables, row, last)
    if indices is not None:
        _check(indices, "indices", (len(q), None), "N,K", torch.int32)
        if indices.device != q.device:
            raise UserError(f"indices: is on {indices.device}, q on {q.device}")
    Dv = values.width if values is not None else value_width
    if keys.native is not None and (values is None or values.native is not None):
        native = None if values is None else values.native
        with told(lambda: _check_places(pools, tables, row, last, indices)):
            return cpu.attend(q, keys.native, native, tables, row, last, scale, indices, Dv)
    if q.is_cuda:
        return gathered.attend(q, keys, values, tables, row, last, scale, indices, Dv)
    _check_places(pools, tables, row, last, indices)
    out = q.new_zeros(len(q), q.shape[1], Dv)
    for queries, slots in _sequences(tables, row, last):
        k = v = None
        if indices is None:
            k, v = _rows(keys, values, slots, Dv)
        for n in queries:
            if indices is None:
                seen = (x[:, : int(last[n]) + 1] for x in (k, v))
            else:
                seen = _rows(keys, values, slots[indices[n][indices[n] >= 0].long()], Dv)
            k_n, v_n = seen
            if k_n.shape[1]:
                spans = Spans(*torch.tensor([0, k_n.shape[1] - 1], device=q.device).view(2, 1, 1))
                out[n] = reference.dense_attention(q[n : n + 1, None], k_n, v_n, spans, scale, None)[0][0, 0]
    return out


def _rows(keys: Pool, values: Pool | None, slots: Tensor, Dv: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the slots as `reference.py` has them, `[1,n,G,D]`."""
    k = keys.read(slots)[None]
    return k, k[..., :Dv] if values is None else values.read(slots)[None]


def _sequences(tables: Tensor, row: Tensor, last: Tensor) -> Iterator[tuple[list[int], Tensor]]:
    """The queries of each sequence that stand together, and the slots of the positions that they see."""
    rows, lasts = row.tolist(), last.tolist()
    for number, queries in groupby(range(len(rows)), rows.__getitem__):
        queries = list(queries)
        positions = torch.arange(max(lasts[n] for n in queries) + 1, device=tables.device)
        yield queries, tables[number].long()[positions // PAGE] * PAGE + positions % PAGE


def _check(x: Tensor, name: str, shape: tuple[int | None, ...], letters: str, dtype: torch.dtype) -> None:
    same = x.dtype == dtype and x.dim() == len(shape)
    if not same or any(want not in (None, size) for want, size in zip(shape, x.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        name_of = str(dtype).removeprefix("torch.")
        raise UserError(f"{name}: expected {name_of} [{letters}] = [{wanted}], got {x.dtype} {list(x.shape)}")


def _check_queries(q: Tensor, pools: tuple[Pool, ...], tables: Tensor, row: Tensor, last: Tensor) -> None:
    _check(tables, "tables", (None, None), "B,P", torch.int32)
    for name, x in (("row", row), ("last", last)):
        _check(x, name, q.shape[:1], "N", torch.int32)
    for name, x in (("tables", tables), ("row", row), ("last", last), *(("pool", pool.data) for pool in pools)):
        if x.device != q.device:
            raise UserError(f"{name}: is on {x.device}, the queries on {q.device}")


def _check_places(
    pools: tuple[Pool, ...], tables: Tensor, row: Tensor, last: Tensor, indices: Tensor | None = None
) -> None:
    """What the C++ library checks by itself: that rows, positions, pages and what was selected are there."""
    if len(row) == 0:
        return
    B, P = tables.shape
    if int(row.min()) < 0 or int(row.max()) >= B:
        raise UserError(f"row: expected 0 to {B - 1}, got {int(row.min())} to {int(row.max())}")
    if int(last.min()) < -1 or int(last.max()) >= P * PAGE:
        raise UserError(f"last: expected -1 to {P * PAGE - 1}, got {int(last.min())} to {int(last.max())}")
    pages = min(pool.pages for pool in pools)
    page = torch.arange(P, device=tables.device)
    used = tables[row.long()][page * PAGE <= last[:, None]]
    if used.numel() and not (int(used.min()) >= 0 and int(used.max()) < pages):
        raise UserError(f"tables: expected pages 0 to {pages - 1}, got {int(used.min())} to {int(used.max())}")
    if indices is not None and indices.numel() and bool(((indices < -1) | (indices > last[:, None])).any()):
        raise UserError("indices: expected -1 or a position that the query sees")
