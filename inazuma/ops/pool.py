"""Pools of pages, in which a server keeps what it has read: how their bytes lie, writing and reading them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops.cpu import paged as cpu
from inazuma.ops.cpu.library import LIBRARY

PAGE = 64
"""Tokens of a page."""

FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "fp8": torch.uint8,
    "int16": torch.int16,
    "int8": torch.int8,
}
"""How a pool keeps its numbers, and the dtype of its storage."""

WHOLE = ("int16", "int8")
"""The formats of index keys alone."""

GROUP = 128
"""Columns that share a scale in fp8."""

LARGEST = 448.0
"""The largest number of e4m3."""

TINY = torch.finfo(torch.float32).tiny


class Pool:
    """All pages of one kind of cache of one layer: rows of G heads of width D.

    A token is `row_bytes` bytes: its heads one behind the other, each of them D numbers of float32 or bfloat16, or, in
    fp8, the published layout of DeepSeek-V3.2's caches (little-endian):

        D - plain            bytes of e4m3 (`torch.float8_e4m3fn`), in groups of 128 columns, the last may be shorter
        4 for each group     bytes of float32: its scale, max |x| / 448, at least 2^-126; a number is e4m3 * scale
        2 * plain            bytes of bfloat16: the last `plain` columns (the rope part of a latent) as they are

    which is 512 + 16 + 128 = 656 bytes for a latent of 576 with 64 rope columns, and 128 + 4 = 132 for an index key.

    Index keys, which selection reads one and all, lie by column on a CPU: a page is the first four bytes of its 64
    tokens, then the next four, `[row_bytes / 4, 64, 4]`. Their formats are float32, and int16 and int8, whose rows are

        D                    whole numbers up to `largest_key`, D of whose products with a query's add up without
                             rounding; zeros up to whole four bytes
        4                    bytes of float32: their unit, max |x| / `largest_key`

    and whose queries become whole numbers up to `largest_query`. Of numbers that are normally distributed rounding to
    int16 changes an eighth of what bfloat16 does or less, to int8 about a quarter of what fp8 does.

    Pages that nobody has written cost no memory: the system gives it when they are touched.

    Args:
        pages: how many. heads: G. width: D.
        format: "float32", "bfloat16" or "fp8"; by column "float32", "int16" or "int8".
        plain: the columns at the end of a row that fp8 leaves in bfloat16; of no meaning in the other formats.
        by_column: whether pages lie by column, with one head.

    Raises:
        UserError: a size or format that is none.
    """

    def __init__(
        self,
        pages: int,
        heads: int,
        width: int,
        format: str,
        *,
        plain: int = 0,
        by_column: bool = False,
        device: torch.device | str = "cpu",
    ):
        if format not in FORMATS:
            raise UserError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
        if min(pages, heads, width) < 1:
            raise UserError(f"pool: expected at least one page, head and column, got {pages}, {heads} and {width}")
        if not 0 <= plain <= width:
            raise UserError(f"plain: expected 0 to {width}, the width of a head, got {plain}")
        if by_column and heads > 1:
            raise UserError(f"by_column: a pool by column has one head, not {heads}")
        if format != "float32" and by_column != (format in WHOLE):
            raise UserError(f"format: {format} is for pools by {'row' if by_column else 'column'}")
        self.pages, self.heads, self.width, self.format, self.plain = pages, heads, width, format, plain
        self.by_column = by_column
        coded = width - plain
        self.groups = -(-coded // GROUP)
        dtype = FORMATS[format]
        unit = 4 // dtype.itemsize
        self.columns = width
        """Elements of `data` to a head."""
        if format == "fp8":
            self.columns = coded + 4 * self.groups + 2 * plain
        elif format in WHOLE:
            self.columns = _padded(width, format) + unit
        shape = (pages, self.columns // unit, PAGE, unit) if by_column else (pages * PAGE, heads, self.columns)
        self.data = torch.empty(shape, dtype=dtype, device=device)
        """`[slots, G, columns]`; by column `[pages, units, PAGE, elements of four bytes]`."""
        self.row_bytes = heads * self.columns * dtype.itemsize
        native = LIBRARY is not None and self.data.is_cpu
        self.native = cpu.describe(self, tuple(FORMATS)) if native else None
        """What the C++ library is told of it; None where PyTorch does the work."""

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Puts `x [N,G,D]`, of any float dtype, into the slots int64 `[N]`, no slot twice.

        Raises:
            UserError: a shape, dtype or slot that does not fit.
        """
        if slots.dtype != torch.int64 or slots.dim() != 1:
            raise UserError(f"slots: expected int64 [N], got {slots.dtype} {list(slots.shape)}")
        if x.shape != (len(slots), self.heads, self.width) or not x.is_floating_point():
            shape = [len(slots), self.heads, self.width]
            raise UserError(f"x: expected floats [N,G,D] = {shape}, got {x.dtype} {list(x.shape)}")
        if self.native is not None:
            with told(lambda: _check_slots(slots, self)):
                cpu.write(self.native, slots, x)
            return
        _check_slots(slots, self)
        rows = self._encode(x)
        if self.by_column:
            self.data[slots // PAGE, :, slots % PAGE] = rows.reshape(len(slots), *self.data.shape[1::2])
        else:
            self.data[slots] = rows

    def read(self, slots: Tensor) -> Tensor:
        """The rows of the slots int64 `[n]`, float32 `[n,G,D]`."""
        _check_slots(slots, self)
        rows = self.data[slots // PAGE, :, slots % PAGE].flatten(1)[:, None] if self.by_column else self.data[slots]
        return self._decode(rows)

    def read_pages(self, pages: Tensor) -> Tensor:
        """The rows of whole pages int32 `[B,P]`, `[B,P*PAGE,G,D]`, of a pool by row; float32, or else bfloat16.

        A number that is no page's stands for some page, whose rows then mean nothing.
        """
        rows = self.data.unflatten(0, (self.pages, PAGE))[pages.long().clamp(0, self.pages - 1)].flatten(1, 2)
        return self._decode(rows).bfloat16() if self.format == "fp8" else rows

    def rounded(self, x: Tensor) -> Tensor:
        """Queries float32 `[...,D]` as they meet the keys of int16 and int8; others are left as they are."""
        if self.format not in WHOLE:
            return x
        rows = _encode_whole(x, largest_query(self.width, self.format), torch.int16)
        return _decode_whole(rows, self.width)

    def _encode(self, x: Tensor) -> Tensor:
        if self.format == "fp8":
            return _encode(x.float(), self.plain)
        if self.format in WHOLE:
            return _encode_whole(x.float(), largest_key(self.width, self.format), self.data.dtype)
        return x.to(self.data.dtype)

    def _decode(self, rows: Tensor) -> Tensor:
        if self.format == "fp8":
            return _decode(rows, self.width, self.plain)
        return _decode_whole(rows, self.width) if self.format in WHOLE else rows.float()

    def copy_page(self, source: int, target: int) -> None:
        """Makes page `target` what page `source` is."""
        if not (0 <= source < self.pages and 0 <= target < self.pages):
            raise UserError(f"page: expected 0 to {self.pages - 1}, got {source} and {target}")
        pages = self.data.view(self.pages, -1)
        pages[target] = pages[source]


@contextmanager
def told(check: Callable[[], None]) -> Iterator[None]:
    """Where the C++ library refuses, `check` says it in more words."""
    try:
        yield
    except UserError:
        check()
        raise


def _check_slots(slots: Tensor, pool: Pool) -> None:
    if slots.dtype != torch.int64 or slots.dim() != 1:
        raise UserError(f"slots: expected int64 [N], got {slots.dtype} {list(slots.shape)}")
    # To look at a GPU's numbers would be to wait for it; PyTorch looks there itself.
    if not slots.is_cuda and len(slots) and not (int(slots.min()) >= 0 and int(slots.max()) < pool.pages * PAGE):
        raise UserError(f"slots: expected 0 to {pool.pages * PAGE - 1}, got {int(slots.min())} to {int(slots.max())}")


def _encode(x: Tensor, plain: int) -> Tensor:
    """float32 `[...,D]` as the bytes of fp8, uint8 `[...,columns]`."""
    coded = x.shape[-1] - plain
    codes, scales = [], []
    for group in x[..., :coded].split(GROUP, -1) if coded else ():
        scale = (group.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=TINY)
        codes.append((group / scale).to(torch.float8_e4m3fn).view(torch.uint8))
        scales.append(scale.view(torch.uint8))
    return torch.cat([*codes, *scales, x[..., coded:].bfloat16().view(torch.uint8)], -1)


def _decode(rows: Tensor, width: int, plain: int) -> Tensor:
    """The inverse of `_encode`."""
    coded = width - plain
    groups = -(-coded // GROUP)

    def part(start: int, size: int, dtype: torch.dtype) -> Tensor:
        # A view of another element size must begin at one, and PyTorch cannot view what is empty.
        out = rows.new_empty(*rows.shape[:-1], size)
        return out.copy_(rows[..., start : start + size]).view(dtype).float() if size else out.float()

    numbers = part(0, coded, torch.float8_e4m3fn)
    scales = part(coded, 4 * groups, torch.float32).repeat_interleave(GROUP, -1)[..., :coded]
    return torch.cat([numbers * scales, part(coded + 4 * groups, 2 * plain, torch.bfloat16)], -1)


def _padded(width: int, format: str) -> int:
    """Numbers of a row of int16 or int8 up to whole four bytes."""
    return width + -width % (4 // FORMATS[format].itemsize)


def largest_key(width: int, format: str) -> int:
    """The largest of the whole numbers of keys of int16 or int8."""
    return 127 if format == "int8" else math.isqrt((2**31 - 1) // _padded(width, format))


def largest_query(width: int, format: str) -> int:
    """The largest of the whole numbers of a query: D products of the largest fit 32 bits."""
    return min(32767, (2**31 - 1) // (_padded(width, format) * largest_key(width, format)))


def _encode_whole(x: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """float32 `[...,D]` as whole numbers and their unit, `[...,columns]`."""
    largest = x.abs().amax(-1, keepdim=True)
    each = most / largest
    numbers = torch.where(each.isfinite() & largest.isfinite(), (x * each).round(), 0.0).to(dtype)
    unit = torch.where(each.isfinite(), largest / most, 0.0).where(largest.isfinite(), torch.nan)
    return torch.cat([F.pad(numbers, (0, -x.shape[-1] % (4 // dtype.itemsize))), unit.view(dtype)], -1)


def _decode_whole(rows: Tensor, width: int) -> Tensor:
    """The inverse of `_encode_whole`."""
    unit = rows[..., -(4 // rows.dtype.itemsize) :]
    return rows[..., :width].float() * unit.clone(memory_format=torch.contiguous_format).view(torch.float32)
