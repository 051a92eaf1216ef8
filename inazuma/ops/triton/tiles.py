"""Tile sizes from a GPU's limits: pure functions, so that they can be tested for GPUs that are not there.

Two things bound a tile: a block's shared memory, and the registers that hold its sums. The sizes below are the largest
tried that, compiled for each GPU, keep within both (`tests/ops/test_triton_compile.py` has them compiled anew). Those
for `HOPPER` are the fastest measured on an H100; the others were chosen by what compilers report, not by speed.
"""

from __future__ import annotations

from typing import NamedTuple

SMALLEST_SIDE = 16
"""Of a tile in a matrix product, on every GPU's tensor cores. Fewer heads than this are padded to it."""

SELECT_BLOCK = 2048
"""Scores that selection reads at a time."""

SAMPLE = 2048
"""Scores of a row from which selection guesses the least that is kept."""

LOSS_BLOCK = 1024
"""Scores that a row of the loss reads at a time."""

UNION_BLOCK = 1024
"""Kept keys that are marked at a time."""

LARGEST_PACK = 8
"""Queries that may share a tile of kept keys: the bits of a byte."""

SUM_BLOCK = 1024
SUM_COLUMNS = 128
"""Sums that a program holds of the pairs' contributions, and at most so many of a key's."""

SPLITS = 512
"""Programs of the dense backward pass over keys below which queries are shared out: a few for every multiprocessor."""

HOPPER = 90
"""The compute capability whose tensor cores multiply tiles of 64 rows in shared memory (wgmma)."""

RANGE_BLOCK = 1024
"""Queries whose spans are read at a time to find who sees a tile of keys."""


class Limits(NamedTuple):
    """What a GPU gives a block."""

    shared: int
    """Bytes of shared memory: 65,536 (gfx942), 101,376 (sm_86, 89, 120), 166,912 (sm_80), 232,448 (sm_90, sm_100)."""
    warp: int
    """Threads of a warp: 32 (NVIDIA) or 64 (AMD), where 8 warps leave each thread half the registers of 4."""

    hopper: bool = False
    """Whether products want 64 rows: `HOPPER`."""

    @property
    def roomy(self) -> bool:
        return self.shared >= 160 << 10


SMALLEST = Limits(65_536, 64)


class Widths(NamedTuple):
    """Of an attention: columns of a key, and of a value if it is not the key's beginning (else 0); how many query heads
    a key-value head has; and whether all is in float32."""

    key: int
    value: int
    heads: int
    exact: bool

    @property
    def narrow(self) -> bool:
        return max(self.key, self.value) <= 128

    @property
    def apart(self) -> bool:
        """Wide keys and wide values at once: the most that must fit."""
        return not self.narrow and self.value > 0


class Tiles(NamedTuple):
    """Sizes of one kernel's tiles and how it is launched."""

    rows: int
    keys: int
    warps: int
    stages: int
    pack: int = 1
    """Neighbouring queries that share a tile of kept keys."""


EXACT = Tiles(16, 16, 8, 1)
"""For float32, whose products NVIDIA's tensor cores do not do: all of a tile's factors pass through registers."""


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and a tile's smallest side."""
    return max(SMALLEST_SIDE, 1 << (n - 1).bit_length())


def split(width: int) -> tuple[int, int]:
    """`width` as two tiles: a power of two and what remains, padded (0: nothing). 576 = 512 + 64, 128 = 128 + 0."""
    if width <= SMALLEST_SIDE:
        return SMALLEST_SIDE, 0
    main = 1 << (width.bit_length() - 1)
    return main, power_of_two(width - main) if width > main else 0


def at_most(tile: Tiles, rows: int) -> Tiles:
    """The tile cut to a power of two that covers `rows`; where that leaves 16, they keep 4 warps busy."""
    rows = power_of_two(rows)
    if rows >= tile.rows:
        return tile
    return tile._replace(rows=rows, warps=4 if rows == SMALLEST_SIDE else tile.warps)


def candidates(keys: int, kept: int) -> int:
    """Room for the scores among which selection goes on; 0 where a row is too short for a sample to save much."""
    return power_of_two(4 * kept) if keys >= max(8 * kept, 2 * SAMPLE) else 0


def packs(heads: int, keys: int, kept: int) -> bool:
    """Whether queries of so few heads share their kept keys' tiles (see `packs.py`), decided by the shape alone.

    A query of a pack is multiplied with all that the pack keeps, at most `keys`: heads x keys products. By itself it
    takes 16 x kept, for a tile has 16 rows, and gathers more, never less. Packs are made where they take at most twice
    the products whatever is kept; where neighbours keep the same keys they take heads / 16 of them.
    """
    return heads <= SMALLEST_SIDE and heads * keys <= 2 * SMALLEST_SIDE * kept


def for_sets(tile: Tiles, heads: int, packed: bool) -> Tiles:
    """The tile for sets of kept keys: its rows are the heads of one query, or of as many as it has room for."""
    pack = min(LARGEST_PACK, tile.rows // heads) if packed else 1
    return at_most(tile, max(1, pack) * heads)._replace(pack=max(1, pack))


def forward(gpu: Limits, widths: Widths, sparse: bool, packed: bool = False) -> Tiles:
    if widths.exact:
        tile = EXACT
    elif widths.narrow and gpu.hopper:
        tile = Tiles(64, 128, 8, 2) if sparse else Tiles(64, 64, 4, 2)
    elif widths.narrow:
        tile = Tiles(64, 64, 8, 2)
    elif widths.apart:
        tile = Tiles(16, 16, 4, 1)
    elif gpu.hopper:
        tile = Tiles(64, 64, 8, 2)
    elif gpu.warp == 64:
        tile = Tiles(32, 32, 4, 2)
    elif not gpu.roomy or (packed and gpu.shared < 227 << 10):  # packs of 64 rows spill on sm_80
        tile = Tiles(32, 32, 8, 2)
    else:
        tile = Tiles(64 if sparse else 32, 32, 8, 2)
    return for_sets(tile, widths.heads, packed) if sparse else tile


def paged(gpu: Limits, widths: Widths, format: str) -> Tiles:
    """Of a pool of that format; numbers decoded from fp8 pass through registers in float32."""
    tile = forward(gpu, widths, sparse=True)
    if format != "fp8":
        return tile
    return tile._replace(rows=min(tile.rows, 32), keys=16, stages=1, warps=8 if gpu.warp == 32 else 4)


def backward_queries(gpu: Limits, widths: Widths, sparse: bool, packed: bool = False) -> Tiles:
    if widths.exact:
        tile = EXACT
    elif widths.narrow and gpu.hopper:
        tile = Tiles(64, 64, 8 if sparse else 4, 2)
    elif widths.narrow:
        tile = Tiles(64, 32, 8, 1)
    elif widths.apart:
        tile = Tiles(16, 16, 4, 1)
    elif gpu.hopper:
        few = sparse and not packed and widths.heads <= SMALLEST_SIDE
        tile = Tiles(16, 32, 4, 2) if few else Tiles(64, 32, 8, 1)
    elif gpu.warp == 64:
        tile = Tiles(16, 32, 4, 1)
    else:
        tile = Tiles(32 if gpu.roomy else 16, 32, 8, 1)
        return for_sets(tile, widths.heads, packed)._replace(warps=8) if sparse else tile
    return for_sets(tile, widths.heads, packed) if sparse else tile


def backward_keys(gpu: Limits, widths: Widths, sparse: bool, merged: bool = False) -> Tiles:
    """merged: whether one sum serves keys and values."""
    if widths.exact:
        return EXACT
    if widths.narrow:
        tile = Tiles(32, 64, 8, 1) if sparse or not gpu.hopper else Tiles(64, 64, 4, 1)
        return at_most(tile, widths.heads) if sparse else tile
    if merged and gpu.hopper:
        few = sparse and widths.heads <= SMALLEST_SIDE
        return Tiles(16, 16, 4, 2) if few else Tiles(32, 32, 8, 2)
    return Tiles(16, 16, 4 if gpu.warp == 64 else 8, 1)


def visible_target(gpu: Limits, widths: Widths) -> Tiles:
    """Rows are queries."""
    if widths.exact:
        return EXACT
    return Tiles(64, 64, 8, 1) if widths.narrow or gpu.roomy else Tiles(32, 32, 4, 1)


def kept_target(gpu: Limits, widths: Widths) -> Tiles:
    """Rows are heads, of the attention and then of the indexer."""
    return at_most(visible_target(gpu, widths), widths.heads)


def scores(gpu: Limits, queries: int, exact: bool) -> Tiles:
    """Rows are queries; where there are few, as in decoding, the tile is."""
    if exact:
        return EXACT
    if queries <= 32:
        return at_most(Tiles(32, 64, 4, 1), queries)
    return at_most(Tiles(128 if gpu.warp == 64 else 64, 128, 8, 2), queries)


def index_backward(heads: int, exact: bool) -> Tiles:
    return at_most(EXACT if exact else Tiles(64, 64, 4, 1), heads)
