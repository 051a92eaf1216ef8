"""The C++ of paged caches (`native/paged.cpp`, `native/paged_attend.cpp`) for `inazuma.ops.paged`, by ctypes."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops.cpu.library import function

if TYPE_CHECKING:
    from inazuma.ops.pool import Pool

_WRONG = {
    2: "slots: one is not in the pool",
    3: "row: a query's is not in the tables",
    4: "last: a position is not in its sequence's pages",
    5: "tables: a page is not in the pool",
    6: "indices: expected -1 or a position that the query sees",
}
"""What the functions return (`native/interface.h`)."""

SHORT = 4096
"""Keys, all queries together, up to which a call keeps Python's lock; see `MANY` in `inazuma.ops.packed`."""


class _Pool(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("pages", "head_bytes")),
        *((name, ctypes.c_int32) for name in ("heads", "width", "plain", "format", "by_column")),
    )


class _Queries(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "B", "P")),
        *((name, ctypes.c_void_p) for name in ("tables", "row", "last")),
        ("threads", ctypes.c_int32),
    )


def describe(pool: Pool, formats: tuple[str, ...]) -> _Pool:
    """The structure of a pool, whose storage stays where it is."""
    format = formats.index(pool.format)
    head = pool.row_bytes // pool.heads
    return _Pool(pool.data.data_ptr(), pool.pages, head, pool.heads, pool.width, pool.plain, format, pool.by_column)


def write(pool: _Pool, slots: Tensor, x: Tensor) -> None:
    """x float32 `[N,G,D]` into slots int64 `[N]`."""
    slots, x = slots.contiguous(), x.float().contiguous()
    run = _write if len(slots) < 64 else _write_unlocked
    _done(run(ctypes.addressof(pool), slots.data_ptr(), x.data_ptr(), len(slots), torch.get_num_threads()))


def select(index_q: Tensor, index_w: Tensor, pool: _Pool, tables: Tensor, row: Tensor, last: Tensor, k: int) -> Tensor:
    """See `inazuma.ops.paged.select`."""
    index_q, index_w = index_q.contiguous(), index_w.contiguous()
    queries, kept, short = _queries(tables, row, last)
    out = torch.empty((len(index_q), k), dtype=torch.int32)
    run = _select if short else _select_unlocked
    arguments = (index_q.data_ptr(), index_w.data_ptr(), index_q.shape[1], k, out.data_ptr())
    _done(run(ctypes.addressof(queries), ctypes.addressof(pool), *arguments))
    del kept
    return out


def attend(
    q: Tensor,
    keys: _Pool,
    values: _Pool | None,
    tables: Tensor,
    row: Tensor,
    last: Tensor,
    scale: float,
    indices: Tensor | None,
    width: int,
) -> Tensor:
    """See `inazuma.ops.paged.attend`; `width` is that of the values."""
    q = q.contiguous()
    indices = None if indices is None else indices.contiguous()
    queries, kept, short = _queries(tables, row, last)
    out = torch.empty((*q.shape[:2], width))
    run = _attend if short else _attend_unlocked
    code = run(
        ctypes.addressof(queries),
        ctypes.addressof(keys),
        None if values is None else ctypes.addressof(values),
        q.data_ptr(),
        q.shape[1],
        width,
        scale,
        None if indices is None else indices.data_ptr(),
        0 if indices is None else indices.shape[1],
        out.data_ptr(),
    )
    _done(code)
    del kept
    return out


def _queries(tables: Tensor, row: Tensor, last: Tensor) -> tuple[_Queries, tuple[Tensor, ...], bool]:
    """The structure, what must stay alive meanwhile, and whether the call is short."""
    kept = tables, row, last = tables.contiguous(), row.contiguous(), last.contiguous()
    N, (B, P) = len(row), tables.shape
    pointers = (x.data_ptr() for x in kept)
    return _Queries(N, B, P, *pointers, torch.get_num_threads()), kept, N * P * 64 <= SHORT


def _done(code: int) -> None:
    if code == 1:
        raise MemoryError("no memory for an operator on pages")
    if code:
        raise UserError(_WRONG[code])


_write, _write_unlocked = (function("paged_write", locked=locked) for locked in (True, False))
_select, _select_unlocked = (function("paged_select", locked=locked) for locked in (True, False))
_attend, _attend_unlocked = (function("paged_attend", locked=locked) for locked in (True, False))
