"""Paged caches where no kernel reads pages: the rows of whole sequences are gathered, and the engines do the rest.

This is how a GPU serves. Texts that write one token each are one batch, as long as the longest of them; those that read
a part of their prompt come one by one. Arguments are those of `paged.py`, which has checked them. What is gathered is
read in float32 from a float32 cache, in bfloat16 from the others. Results are those of `paged.py` to rounding; a
query's last bits may depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from inazuma.ops.dispatch import dense_attention, select_tokens, sparse_attention
from inazuma.ops.pool import PAGE, Pool


class Part(NamedTuple):
    """R sequences with n queries each."""

    queries: Tensor
    """int64 `[R,n]`: which of the N queries."""
    slots: Tensor
    """int64 `[R,S]`: where the positions lie that any of them sees."""
    exists: Tensor
    """bool `[R,S]`: whether the sequence has the position; its slot is 0 where it has not."""
    last: Tensor
    """int32 `[R,n]`"""

    @property
    def spans(self) -> dict[str, Tensor]:
        return {"first": torch.zeros_like(self.last), "last": self.last}

    def read(self, pool: Pool) -> Tensor:
        """`[R,S,G,D]`, zeros where a sequence has ended."""
        rows = pool.read(self.slots.flatten()).view(*self.slots.shape, pool.heads, pool.width)
        rows = rows.where(self.exists[..., None, None], 0.0)
        return rows if pool.format == "float32" else rows.bfloat16()


def select(index_q: Tensor, index_w: Tensor, pool: Pool, tables: Tensor, row: Tensor, last: Tensor, k: int) -> Tensor:
    out = torch.full((len(index_q), k), -1, dtype=torch.int32, device=index_q.device)
    for part in parts(tables, row, last):
        keys = part.read(pool)[:, :, 0]
        queries = index_q[part.queries].to(keys.dtype)
        out[part.queries] = select_tokens(queries, keys, index_w[part.queries], k, **part.spans)
    return out


def attend(
    q: Tensor,
    keys: Pool,
    values: Pool | None,
    tables: Tensor,
    row: Tensor,
    last: Tensor,
    scale: float,
    indices: Tensor | None,
    Dv: int,
) -> Tensor:
    out = q.new_zeros(len(q), q.shape[1], Dv)
    for part in parts(tables, row, last):
        k = part.read(keys)
        v = k[..., :Dv] if values is None else part.read(values)
        queries = q[part.queries].to(k.dtype)
        if indices is None:
            result, _ = dense_attention(queries, k, v, scale=scale, **part.spans)
        else:
            result, _ = sparse_attention(queries, k, v, indices[part.queries], scale=scale)
        out[part.queries] = result.float()
    return out


def parts(tables: Tensor, row: Tensor, last: Tensor) -> Iterator[Part]:
    """The queries that see something: of sequences with one query together, the others a sequence at a time."""
    rows, lasts = row.tolist(), last.tolist()
    seeing = [n for n in range(len(rows)) if lasts[n] >= 0]
    runs = [list(run) for _, run in groupby(seeing, rows.__getitem__)]
    singles = [run for run in runs if len(run) == 1]
    for part in ([singles] if singles else []) + [[run] for run in runs if len(run) > 1]:
        queries = torch.tensor(part, device=row.device)
        last_Rn = last[queries]
        ends = last_Rn.amax(1).long()
        position = torch.arange(max(lasts[n] for run in part for n in run) + 1, device=row.device)
        pages = tables[row[queries[:, 0]].long()].long()[:, position // PAGE]
        exists = position <= ends[:, None]
        yield Part(queries, torch.where(exists, pages * PAGE + position % PAGE, 0), exists, last_Rn)
