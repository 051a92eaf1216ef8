"""Rotary embedding in place, in one kernel where PyTorch's operators take ten: what a token of few texts takes on a GPU
is mostly the number of kernels."""

import triton
import triton.language as tl
from torch import Tensor

from inazuma.ops.triton.launch import on_its_gpu


@triton.jit
def rotate_heads(
    x,
    positions,
    cos,
    sin,
    x_row,
    x_head,
    S,
    P,
    START: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (rows, heads), one warp: all columns are read before any is written."""
    head = x + tl.program_id(0).to(tl.int64) * x_row + tl.program_id(1) * x_head + START
    position = tl.load(positions + tl.program_id(0)).to(tl.int64)
    pair = tl.arange(0, TILE)
    exists = (pair < P) & (position >= 0) & (position < S)
    c = tl.load(cos + position * P + pair, mask=exists, other=0.0)
    s = tl.load(sin + position * P + pair, mask=exists, other=0.0)
    if INTERLEAVED:
        a = tl.load(head + 2 * pair, mask=exists, other=0.0)
        b = tl.load(head + 2 * pair + 1, mask=exists, other=0.0)
    else:
        a = tl.load(head + pair, mask=exists, other=0.0)
        b = tl.load(head + P + pair, mask=exists, other=0.0)
    tl.debug_barrier()
    tl.store(head + pair, a * c - b * s, mask=exists)
    tl.store(head + P + pair, b * c + a * s, mask=exists)


@on_its_gpu
def rotate(x_NHD: Tensor, positions_N: Tensor, cos_SP: Tensor, sin_SP: Tensor, start: int, interleaved: bool) -> Tensor:
    """As `packed.rotate`, which has checked everything but the positions; where one is none, nothing is turned."""
    N, H, _ = x_NHD.shape
    S, P = cos_SP.shape
    rotate_heads[N, H](
        x_NHD,
        positions_N,
        cos_SP,
        sin_SP,
        *x_NHD.stride()[:2],
        S,
        P,
        START=start,
        INTERLEAVED=interleaved,
        TILE=triton.next_power_of_2(P),
        num_warps=1,
    )
    return x_NHD
