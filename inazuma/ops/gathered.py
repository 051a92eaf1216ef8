"""Paged caches on a GPU. Arguments are those of `paged.py`, but that nobody checks rows, positions, pages and indices:
to read them would be to wait for the GPU, hundreds of times a token.

Queries of one sequence, as a prompt's, come with a table of one row: what the sequence has is gathered and the engines
do the rest. Of several sequences there is one query each, as when texts are written. Their attention, and that over
what was selected, reads the pages where they lie (`triton/paged.py`); where those kernels cannot, rows are gathered for
each query. Products are of float32 where the cache is float32, else of bfloat16. Results are those of `paged.py` to
rounding; a query's last bits may depend on what else is in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inazuma.ops.dispatch import dense_attention, engine_for, select_tokens, sparse_attention
from inazuma.ops.pool import Pool


def select(index_q: Tensor, index_w: Tensor, pool: Pool, tables: Tensor, row: Tensor, last: Tensor, k: int) -> Tensor:
    keys = _gathered(pool, tables, row)[:, :, 0]
    queries = _batched(index_q, keys).to(keys.dtype)
    kept = select_tokens(queries, keys, _batched(index_w, keys), k, **_spans(last, keys))
    return kept.flatten(0, 1)


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
    pools = (keys,) if values is None else (keys, values)
    alone = len(q) == 1 or len(tables) > 1
    if (alone or indices is not None) and _in_place(q, pools):
        from inazuma.ops.triton import paged

        return paged.attend(q, keys, values, tables, row, last, scale, indices, Dv)
    k = _gathered(keys, tables, row)
    v = k[..., :Dv] if values is None else _gathered(values, tables, row)
    queries = _batched(q, k).to(k.dtype)
    if indices is None:
        out, _ = dense_attention(queries, k, v, scale=scale, **_spans(last, k))
    else:
        out, _ = sparse_attention(queries, k, v, _batched(indices, k), scale=scale)
    return out.flatten(0, 1).float()


def _in_place(q: Tensor, pools: tuple[Pool, ...]) -> bool:
    """Whether the Triton engine's kernels read the pools where they lie."""
    if engine_for(q[None, :, :, :1]) != "triton":
        return False
    from inazuma.ops.triton import paged

    return paged.obstacle(q, *pools) is None


def _gathered(pool: Pool, tables: Tensor, row: Tensor) -> Tensor:
    """`[B,S,G,D]`: the rows of the one sequence that there is, or for each query those of its own."""
    pages = tables if len(tables) == 1 else tables[row.long()]
    return pool.read_pages(pages)


def _batched(x: Tensor, keys: Tensor) -> Tensor:
    """Queries as the engines have them, `[B,T,...]`: of one sequence, or of one query each."""
    return x[None] if len(keys) == 1 else x[:, None]


def _spans(last: Tensor, keys: Tensor) -> dict[str, Tensor]:
    last = _batched(last, keys)
    return {"first": torch.zeros_like(last), "last": last}
