"""What the operators share on their way to the kernels: chunks of queries, and the inverted map."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from inazuma.ops import dispatch
from inazuma.ops.contract import Spans
from inazuma.ops.triton import tiles
from inazuma.ops.triton.pairs import count_readers, mark_readers, sum_pairs
from inazuma.ops.triton.pairs import query_ranges as query_ranges_kernel

SLAB_BYTES = 256 << 20
"""What a slab may take, however long the sequence (more only where a single query needs more): at most this, or on a
GPU of much memory 1/SLAB_SHARE of it. The fewer chunks, the seldomer are sums of all keys read and written."""
SLAB_SHARE = 64


MOST_QUERIES = 1 << 19
"""Of a chunk: 16 of them to a tile are 32,768 programs, and a grid's second side has at most 65,535."""


class Chunk(NamedTuple):
    """Queries `begin <= t < begin + size` of the batch entries `batch`."""

    batch: slice
    begin: int
    size: int


def slab_bytes(device: torch.device) -> int:
    """The most that a slab may take there."""
    if device.type == "cpu":
        return SLAB_BYTES
    return max(SLAB_BYTES, torch.cuda.get_device_properties(device).total_memory // SLAB_SHARE)


def chunks(B: int, T: int, bytes_per_query: int, device: torch.device) -> Iterator[Chunk]:
    """All queries, in chunks that take at most `slab_bytes`; several batch entries in one where they fit whole."""
    together = max(1, slab_bytes(device) // max(1, bytes_per_query))
    entries, size = max(1, together // T), min(T, together, MOST_QUERIES)
    for batch in range(0, B, entries):
        for begin in range(0, T, size):
            yield Chunk(slice(batch, min(B, batch + entries)), begin, min(size, T - begin))


def on_its_gpu(operator: Callable) -> Callable:
    """Runs `operator` with its first tensor's GPU as the current one: that is where Triton launches kernels."""

    @functools.wraps(operator)
    def run(x: Tensor, *arguments):
        with torch.cuda.device_of(x):
            return operator(x, *arguments)

    return run


@functools.cache
def limits(device: torch.device) -> tiles.Limits:
    """Those of the GPU; in the interpreter, of the smallest."""
    if device.type == "cpu":
        return tiles.SMALLEST
    shared = triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"]
    target = triton.runtime.driver.active.get_current_target()
    return tiles.Limits(shared, target.warp_size, target.arch == tiles.HOPPER)


def atomic() -> bool:
    """Whether gradients may be added up in any order."""
    return not dispatch.deterministic and not torch.are_deterministic_algorithms_enabled()


def by_rows(x: Tensor) -> Tensor:
    """`x` with a contiguous last dimension; the kernels take the others' strides as they are.

    A tensor off the 16 bytes that wide loads need is copied: without them kernels take more shared memory than some
    GPUs have (absorbed attention on sm_86: 102,400 bytes instead of 75,776).
    """
    wide = x.shape[-1] % 16 != 0 or all(stride % 16 == 0 for stride in x.stride()[:-1])
    if x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and wide:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def keys_and_values(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both `by_rows`; values that are the keys' first columns stay that."""
    shared = v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and v.shape[-1] <= k.shape[-1]
    k = by_rows(k)
    return k, k[..., : v.shape[-1]] if shared else by_rows(v)


def spans_of(spans: Spans) -> tuple[Tensor, Tensor]:
    """`first` and `last` as the kernels read them: int32, contiguous."""
    return spans.first.int().contiguous(), spans.last.int().contiguous()


def options(tile: tiles.Tiles) -> dict[str, int]:
    """The tile's sizes and launch options as the kernels' keyword arguments."""
    return {"ROWS": tile.rows, "KEYS": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


class Pairs(NamedTuple):
    """The pairs (query, kept key) of a chunk, by key and then by query; see `pairs.py`."""

    readers: Tensor
    """int32 `[B,S,words]`: bits of the queries that keep a key."""
    starts: Tensor
    """int32 `[B*S*words+1]`: how many pairs come before those of a word."""
    most: int
    """How many pairs there may be."""

    def room_for(self, x: Tensor) -> Tensor:
        """Room for what each pair owes to the gradient of `x [B,S,...]`: `[pairs,width]`.

        In bfloat16 where `x` is, for that gradient will be: 8 bits of each contribution, and their sum in float32. In
        float16 small ones would vanish.
        """
        dtype = x.dtype if x.dtype == torch.bfloat16 else torch.float32
        return x.new_empty(self.most, x[0, 0].numel(), dtype=dtype)

    def add(self, contributions: Tensor, total: Tensor) -> None:
        """Adds to each key of `total [B,S,...]`, float32, the `contributions` that are its own."""
        B, S, words = self.readers.shape
        width = contributions.shape[1]
        columns = min(tiles.SUM_COLUMNS, tiles.power_of_two(width))
        keys = tiles.SUM_BLOCK // columns
        grid = triton.cdiv(B * S, keys), triton.cdiv(width, columns)
        sum_pairs[grid](contributions, self.starts, total, B * S, words, width, KEYS=keys, COLUMNS=columns)


def pairs_of(indices: Tensor, S: int) -> Pairs:
    """The pairs of `indices [B,chunk,K]`, whose rows are contiguous."""
    B, chunk, K = indices.shape
    words = triton.cdiv(chunk, 32)
    readers = indices.new_zeros(B, S, words)
    grid = chunk * triton.cdiv(K, tiles.UNION_BLOCK), B
    mark_readers[grid](indices, readers, indices.stride(0), S, K, words, BLOCK=tiles.UNION_BLOCK)
    starts = indices.new_zeros(readers.numel() + 1)
    counts = starts.new_empty(readers.numel())
    count_readers[(triton.cdiv(readers.numel(), tiles.UNION_BLOCK),)](
        readers, counts, readers.numel(), BLOCK=tiles.UNION_BLOCK
    )
    torch.cumsum(counts, 0, dtype=torch.int32, out=starts[1:])
    return Pairs(readers, starts, indices.numel())


def bytes_of_pairs(K: int, S: int, *tensors: Tensor) -> int:
    """What a query's contributions to the gradients of `tensors` take, and its share of the map."""
    return S // 2 + sum(K * x[0, 0].numel() * (2 if x.dtype == torch.bfloat16 else 4) for x in tensors)


def query_ranges(first: Tensor, last: Tensor, begin: int, end: int, S: int, keys: int) -> Tensor:
    """Which of the queries `begin <= t < end` can see each tile of `keys` keys, int32 `[B,tiles,2]`, half open."""
    B, T = first.shape
    ranges = first.new_empty(B, triton.cdiv(S, keys), 2)
    query_ranges_kernel[ranges.shape[1], B](first, last, ranges, begin, end, T, KEYS=keys, QUERIES=tiles.RANGE_BLOCK)
    return ranges
