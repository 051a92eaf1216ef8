"""Selection and attention over paged caches, in every format, against the oracle on rows that lie in order."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops import gathered, reference
from inazuma.ops.contract import Spans
from inazuma.ops.paged import attend, select
from inazuma.ops.pool import PAGE, Pool, largest_key, largest_query
from tests.ops import oracle

FORMATS = ("float32", "bfloat16", "fp8")
INDEX_FORMATS = ("float32", "int16", "int8")
"""Of index keys, whose pools lie by column."""
LENGTHS = (200, 63, 130, 64)
"""Tokens of the sequences that most tests have."""


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These operators have no engines to choose among."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shuffled(lengths: tuple[int, ...], seed: int = 1, spare: int = 3) -> tuple[Tensor, int]:
    """Tables whose pages are all over the pool, wrong pages behind each sequence's end; and the pool's pages."""
    needed = [-(-length // PAGE) for length in lengths]
    pages = sum(needed) + spare
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(seed)).int()
    tables = torch.full((len(lengths), max(needed) + 1), -7, dtype=torch.int32)
    for row, count in enumerate(needed):
        tables[row, :count], order = order[:count], order[count:]
    return tables, pages


def slots(table: Tensor, positions: Tensor) -> Tensor:
    return table[positions // PAGE].long() * PAGE + positions % PAGE


def filled(
    pages: int, tables: Tensor, rows: list[Tensor], format: str, plain: int = 0, *, by_column: bool = False
) -> tuple[Pool, list[Tensor]]:
    """A pool with the rows [S,G,D] of each sequence, NaN everywhere else, and what the pool then says they are."""
    pool = Pool(pages, *rows[0].shape[1:], format, plain=plain, by_column=by_column)
    pool.data.view(torch.uint8).fill_(255)  # a NaN in each of the formats
    for table, x in zip(tables, rows, strict=False):
        pool.write(slots(table, torch.arange(len(x))), x)
    return pool, [pool.read(slots(table, torch.arange(len(x)))) for table, x in zip(tables, rows, strict=False)]


class Batch(NamedTuple):
    """Queries of several sequences: row [N] and last [N]."""

    row: Tensor
    last: Tensor


def batch(*queries: tuple[int, int]) -> Batch:
    return Batch(*torch.tensor(queries, dtype=torch.int32).T.contiguous())


QUERIES = batch((1, 62), (0, 0), (0, 5), (0, 63), (0, 64), (0, 199), (2, 128), (2, 129), (3, 63), (1, -1))


# The bytes.


def test_a_latent_has_the_published_656_bytes() -> None:
    """Encoded once more, number by number, by looking for the nearest of the 256 values of e4m3."""
    x = draw(3, 1, 576, seed=5) * torch.tensor([1.0, 30.0, 1e-3])[:, None, None]
    x[1, 0, 128:256] = 0.0
    pool = Pool(1, 1, 576, "fp8", plain=64)
    assert pool.row_bytes == 656
    pool.write(torch.tensor([7, 0, 63]), x)
    stored = pool.data.view(PAGE, 656)[[7, 0, 63]]
    for row, expected in zip(x[:, 0], stored, strict=True):
        codes, scales = b"", b""
        for group in row[:512].view(4, 128):
            most = torch.tensor(float(group.abs().max()))
            scale = max(float(most / torch.tensor(448.0)), 2.0**-126)
            scales += struct.pack("<f", scale)
            codes += bytes(nearest_e4m3(float(torch.tensor(float(value)) / torch.tensor(scale))) for value in group)
        rope = b"".join(struct.pack("<f", float(value.bfloat16()))[2:] for value in row[512:])
        assert codes + scales + rope == bytes(expected.tolist())


def e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if code & 128 else size


def nearest_e4m3(x: float) -> int:
    """Ties go to the code that is even."""
    codes = range(127) if math.copysign(1.0, x) > 0 else range(128, 255)
    return min(codes, key=lambda code: (abs(e4m3(code) - x), code & 1))


@pytest.mark.parametrize(("heads", "width", "plain", "size"), [(1, 128, 0, 132), (3, 64, 0, 204), (2, 200, 8, 432)])
def test_rows_of_fp8_are_as_long_as_described_and_near_what_was_written(
    heads: int, width: int, plain: int, size: int
) -> None:
    x = draw(70, heads, width)
    pool = Pool(2, heads, width, "fp8", plain=plain)
    assert pool.row_bytes == size
    where = torch.randperm(128, generator=torch.Generator().manual_seed(3))[:70]
    pool.write(where, x)
    back = pool.read(where)
    assert ((back - x).abs() <= x.abs() / 16 + x.abs().amax() / 448 / 512).all()
    assert torch.equal(back[..., width - plain :], x[..., width - plain :].bfloat16().float())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_writing_is_rounding_once(format: str, dtype: torch.dtype) -> None:
    """Odd numbers too: zeros, denormal ones, ties, infinities; what is no number stays none."""
    x = draw(12, 2, 150, seed=6).to(dtype)
    x[0] = 0.0
    x[1] *= 1e-42
    x[2] = (torch.randint(-64, 65, (2, 150), generator=torch.Generator().manual_seed(1)) / 32).to(dtype)
    x[3, 0, 5], x[4, 1, 3] = math.nan, math.inf
    pool = Pool(1, 2, 150, format, plain=11)
    pool.write(torch.arange(3, 15), x)
    actual = pool.read(torch.arange(3, 15))
    expected = x.float()
    if format == "bfloat16":
        expected = expected.bfloat16().float()
    if format == "fp8":
        groups = []
        for group in expected[..., :139].split(128, -1):
            scale = (group.abs().amax(-1, keepdim=True) / 448).clamp(min=2.0**-126)
            groups.append((group / scale).to(torch.float8_e4m3fn).float() * scale)
        expected = torch.cat([*groups, expected[..., 139:].bfloat16().float()], -1)
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("format", ["int16", "int8"])
@pytest.mark.parametrize("width", [1, 6, 7, 64, 1500])
@pytest.mark.parametrize("by", ["library", "PyTorch"])
def test_index_keys_are_whole_numbers_side_by_side(format: str, width: int, by: str) -> None:
    """Each number and unit by the formula, where the layout says it lies; sums of products cannot overflow."""
    most, met = largest_key(width, format), largest_query(width, format)
    assert width * most * met < 2**31 and (format == "int8" or (width + width % 2) * (most + 1) ** 2 >= 2**31 - 1)
    x = draw(5, 1, width, seed=6) * torch.tensor([1.0, 1e-3, 1e20, 1e-44, 1.0])[:, None, None]
    x[4, 0, 0] = math.inf
    pool = Pool(2, 1, width, format, by_column=True)
    if by == "PyTorch":
        pool.native = None
    pool.data.fill_(-1)
    where = torch.tensor([7, 0, 63, 64, 127])
    pool.write(where, x)
    size = 2 if format == "int16" else 1
    pages = bytes(pool.data.view(torch.uint8).flatten().tolist())
    assert pool.row_bytes == -(-size * width // 4) * 4 + 4 and len(pages) == 2 * PAGE * pool.row_bytes
    for row, slot in zip(x[:, 0], where.tolist(), strict=True):
        start = slot // PAGE * PAGE * pool.row_bytes + slot % PAGE * 4
        units = [pages[start + 4 * PAGE * u : start + 4 * PAGE * u + 4] for u in range(pool.row_bytes // 4)]
        [unit] = struct.unpack("<f", units[-1])
        count = -(-size * width // 4) * 4 // size
        numbers = struct.unpack(f"<{count}{'h' if size == 2 else 'b'}", b"".join(units[:-1]))
        largest = row.abs().max()
        if not largest.isfinite():
            assert math.isnan(unit) and not any(numbers)
        elif not (most / largest).isfinite():
            assert unit == 0.0 and not any(numbers)
        else:
            assert unit == float(largest / most)
            assert list(numbers) == (row * (most / largest)).round().tolist() + [0] * (count - width)
    finite = pool.read(where[:3])
    assert (finite - x[:3]).abs().amax() <= 0.5001 * x[:3].abs().amax() / most


def test_whole_numbers_are_more_exact_than_floats_of_as_many_bits() -> None:
    """As the docstring of `Pool` has it, for rows of 64 and 128 that are normally distributed."""
    for width in (64, 128):
        x = draw(128, 1, width)

        def error(format: str, x: Tensor = x, width: int = width) -> float:
            pool = Pool(2, 1, width, format, by_column=format.startswith("int"))
            pool.write(torch.arange(128), x)
            return float((pool.read(torch.arange(128)) - x).square().mean().sqrt())

        assert error("int16") < error("bfloat16") / 8
        assert error("int8") < error("fp8") / 3.8


@pytest.mark.parametrize("format", FORMATS)
def test_a_page_is_copied_whole(format: str) -> None:
    pool = Pool(4, 2, 24, format, plain=8)
    x = draw(3 * PAGE, 2, 24)
    pool.write(torch.arange(3 * PAGE), x)
    before = pool.read(torch.arange(3 * PAGE))
    pool.copy_page(1, 3)
    after = pool.read(torch.arange(4 * PAGE))
    assert torch.equal(after[3 * PAGE :], before[PAGE : 2 * PAGE]) and torch.equal(after[: 3 * PAGE], before)


# Selection.


@pytest.mark.parametrize("format", INDEX_FORMATS)
@pytest.mark.parametrize("k", [1, 50, 64, 300])
@pytest.mark.parametrize(("heads", "width"), [(4, 32), (1, 7), (9, 130)])
@pytest.mark.parametrize("by", ["library", "PyTorch"])
def test_selection_is_the_oracles(format: str, k: int, heads: int, width: int, by: str) -> None:
    """Whole numbers with units of 1, or a power of two, however they are kept: scores are exact and tie often."""
    tables, pages = shuffled(LENGTHS)
    generator = torch.Generator().manual_seed(2)
    whole = lambda *shape: torch.randint(-2, 3, shape, generator=generator).float()  # noqa: E731
    rows = [whole(length, 1, width) for length in LENGTHS]
    q, w = whole(len(QUERIES.row), heads, width), whole(len(QUERIES.row), heads)
    if format != "float32":  # the largest of each row makes its unit a power of two
        for x in rows:
            x[..., 0], x[..., 1] = largest_key(width, format), 0
        q[..., 0], q[..., 1] = 0, largest_query(width, format)
        q[::2] /= 64
    pool, rows = filled(pages, tables, rows, format, by_column=True)
    if by == "PyTorch":
        pool.native = None
    actual = select(q, w, pool, tables, *QUERIES, k)
    for n, (row, last) in enumerate(zip(*QUERIES, strict=True)):
        keys = rows[row][None, : last + 1, 0]
        scores = oracle.index_scores(q[None, n : n + 1], keys, w[None, n : n + 1])
        expected = oracle.select(scores, torch.ones_like(scores, dtype=torch.bool), k)[0, 0]
        assert torch.equal(actual[n], expected), (n, row, last)


# Attention.


CASES = {
    "latent": {"heads": 5, "groups": 1, "width": 40, "value_width": 32, "plain": 8},
    "grouped": {"heads": 6, "groups": 3, "width": 64, "value_width": None, "plain": 0},
    "odd": {"heads": 4, "groups": 2, "width": 19, "value_width": None, "plain": 0},
}


class Attention(NamedTuple):
    keys: Pool
    values: Pool | None
    tables: Tensor
    k: list[Tensor]
    v: list[Tensor]
    value_width: int | None


def attention_case(
    format: str, lengths: tuple[int, ...], *, heads: int, groups: int, width: int, value_width: int | None, plain: int
) -> Attention:
    tables, pages = shuffled(lengths)
    keys, k = filled(pages, tables, [draw(n, groups, width, seed=i) for i, n in enumerate(lengths)], format, plain)
    if value_width is not None:
        return Attention(keys, None, tables, k, [x[..., :value_width] for x in k], value_width)
    odd = [draw(n, groups, width + 3, seed=50 + i) for i, n in enumerate(lengths)]
    values, v = filled(pages, tables, odd, format)
    return Attention(keys, values, tables, k, v, None)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kept", [None, 40], ids=["dense", "selected"])
def test_attention_is_the_oracles(format: str, sizes: dict, kept: int | None) -> None:
    case = attention_case(format, LENGTHS, **sizes)
    q = draw(len(QUERIES.row), sizes["heads"], sizes["width"], seed=9)
    indices = None
    if kept is not None:
        indices = torch.full((len(q), kept), -1, dtype=torch.int32)
        for n, last in enumerate(QUERIES.last):
            some = torch.randperm(int(last) + 1, generator=torch.Generator().manual_seed(n))[:kept].sort().values
            indices[n, : len(some)] = some
    actual = attend(q, case.keys, case.values, case.tables, *QUERIES, 0.3, indices, case.value_width)
    for n, (row, last) in enumerate(zip(*QUERIES, strict=True)):
        if last < 0:
            assert not actual[n].any()
            continue
        k, v = case.k[row][None, : last + 1], case.v[row][None, : last + 1]
        seen = torch.ones(1, 1, int(last) + 1, dtype=torch.bool)
        if indices is not None:
            seen = oracle.chosen(indices[None, n : n + 1], int(last) + 1)
        expected, _ = oracle.attention(q[None, n : n + 1], k, v, seen, 0.3)
        torch.testing.assert_close(actual[n].double(), expected[0, 0], rtol=2e-5, atol=2e-6)


# Each query on its own, to the bit.


@pytest.mark.parametrize("format", FORMATS)
def test_how_a_prompt_is_cut_changes_no_bit(format: str) -> None:
    """Selection, attention over it and dense attention: whole, in chunks, and beside other sequences."""
    S = 300
    lengths = (90, S, 150)
    sizes = {"heads": 4, "groups": 1, "width": 40, "value_width": 32, "plain": 8}
    case = attention_case(format, lengths, **sizes)
    tables, pages = shuffled(lengths)
    keys = [draw(n, 1, 32, seed=20 + i) for i, n in enumerate(lengths)]
    index, _ = filled(pages, tables, keys, INDEX_FORMATS[FORMATS.index(format)], by_column=True)
    q, index_q, index_w = draw(S, 4, 40, seed=30), draw(S, 3, 32, seed=31), draw(S, 3, seed=32)
    own = batch(*((1, position) for position in range(S)))

    def answers(queries: slice, others: tuple[tuple[int, int], ...] = ()) -> list[Tensor]:
        n = len(others)
        row = torch.cat([torch.tensor([r for r, _ in others], dtype=torch.int32), own.row[queries]])
        last = torch.cat([torch.tensor([p for _, p in others], dtype=torch.int32), own.last[queries]])
        more = [torch.cat([draw(n, *x.shape[1:], seed=40), x[queries]]) for x in (q, index_q, index_w)]
        indices = select(more[1], more[2], index, tables, row, last, 50)
        sparse = attend(more[0], case.keys, None, case.tables, row, last, 0.2, indices, 32)
        dense = attend(more[0], case.keys, None, case.tables, row, last, 0.2, None, 32)
        return [x[n:] for x in (indices, sparse, dense)]

    whole = answers(slice(0, S))
    for size in (7, 64, 133):
        others = ((0, 80), (2, 3), (2, 149)) if size == 64 else ()
        parts = [answers(slice(start, start + size), others) for start in range(0, S, size)]
        for expected, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat(pieces), expected)


def test_the_definition_on_long_rows_is_the_references() -> None:
    """A longer sequence than the oracle can bear, in float64."""
    S, k = 3000, 200
    tables, pages = shuffled((S,))
    index, keys = filled(pages, tables, [draw(S, 1, 64, seed=1)], "float32", by_column=True)
    q, w = draw(4, 8, 64, seed=2), draw(4, 8, seed=3)
    queries = batch((0, 2999), (0, 1000), (0, 199), (0, 200))
    actual = select(q, w, index, tables, *queries, k)
    for n, last in enumerate(queries.last.tolist()):
        spans = Spans(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), last))
        arguments = (x.double() for x in (q[None, n : n + 1], keys[0][None, :, 0], w[None, n : n + 1]))
        assert torch.equal(actual[n], reference.select_tokens(*arguments, k, spans)[0, 0])


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("format", INDEX_FORMATS)
def test_tasks_that_share_a_query_keep_the_earliest_of_equals(format: str) -> None:
    """The best score is rare where the first task works, and common behind it, where others soon have enough of it."""
    S, k = 60_000, 100
    tables, pages = shuffled((S,))
    generator = torch.Generator().manual_seed(3)
    keys, q = torch.zeros(S, 1, 64), torch.zeros(1, 8, 64)
    often = torch.where(torch.arange(S) < S // 10, 0.005, 0.5)
    keys[:, 0, 2] = 1.0 + (torch.rand(S, generator=generator) < often)
    q[..., 2] = 1.0
    if format != "float32":  # units of 1
        keys[..., 0], q[..., 1] = largest_key(64, format), largest_query(64, format)
    index, _ = filled(pages, tables, [keys], format, by_column=True)
    expected = (keys[:, 0, 2] == 2.0).nonzero()[:k, 0].int()
    assert int((expected < S // 10).sum()) < 50
    for _ in range(20):
        actual = select(q, torch.ones(1, 8), index, tables, *batch((0, S - 1)), k)
        assert torch.equal(actual[0], expected)


# What does not fit.


def test_what_does_not_fit_is_told_in_one_line() -> None:
    tables, pages = shuffled((100,))
    pool, _ = filled(pages, tables, [draw(100, 1, 16)], "bfloat16")
    index, _ = filled(pages, tables, [draw(100, 1, 16)], "int16", by_column=True)
    two, _ = filled(pages, tables, [draw(100, 2, 16)], "bfloat16")
    row, last = batch((0, 99))
    q, w, index_q = draw(1, 2, 16), draw(1, 3), draw(1, 3, 16)
    none = torch.tensor([[-1, 100]], dtype=torch.int32)
    wrong = {
        "format: expected one of float32": lambda: Pool(1, 1, 1, "int4"),
        "pool: expected at least one page": lambda: Pool(0, 1, 1, "fp8"),
        "plain: expected 0 to 8": lambda: Pool(1, 1, 8, "fp8", plain=9),
        "format: int16 is for pools by column": lambda: Pool(1, 1, 8, "int16"),
        "format: fp8 is for pools by row": lambda: Pool(1, 1, 8, "fp8", by_column=True),
        "by_column: a pool by column has one head": lambda: Pool(1, 2, 8, "int8", by_column=True),
        "slots: expected int64": lambda: pool.write(torch.tensor([1], dtype=torch.int32), draw(1, 1, 16)),
        "slots: expected 0 to": lambda: pool.write(torch.tensor([pages * PAGE]), draw(1, 1, 16)),
        "x: expected floats": lambda: pool.write(torch.tensor([1]), draw(1, 1, 15)),
        "page: expected 0 to": lambda: pool.copy_page(0, pages),
        "index_q: expected float32": lambda: select(index_q.double(), w, index, tables, row, last, 3),
        "index_w: expected float32": lambda: select(index_q, w[:, :2], index, tables, row, last, 3),
        "pool: index keys have one head": lambda: select(index_q, w, two, tables, row, last, 3),
        "k: at least one": lambda: select(index_q, w, index, tables, row, last, 0),
        "tables: expected int32": lambda: select(index_q, w, index, tables.long(), row, last, 3),
        "row: expected int32": lambda: select(index_q, w, index, tables, row[:0], last, 3),
        "row: expected 0 to 0": lambda: select(index_q, w, index, tables, row + 1, last, 3),
        "last: expected -1 to": lambda: select(index_q, w, index, tables, row, last + 500, 3),
        "tables: expected pages 0 to": lambda: select(index_q, w, index, tables + pages, row, last, 3),
        "q: expected float32": lambda: attend(q[..., :5], pool, pool, tables, row, last, 1.0),
        "keys, values: expected pools by row": lambda: attend(q, index, index, tables, row, last, 1.0),
        "q: 3 query heads": lambda: attend(draw(1, 3, 16), two, two, tables, row, last, 1.0),
        "values: None means": lambda: attend(q, pool, None, tables, row, last, 1.0),
        "values: expected a pool of 1": lambda: attend(q, pool, two, tables, row, last, 1.0),
        "indices: expected int32": lambda: attend(q, pool, pool, tables, row, last, 1.0, none.long()),
        "indices: expected -1 or a position": lambda: attend(q, pool, pool, tables, row, last, 1.0, none),
        "row: is on meta": lambda: attend(q, pool, pool, tables, row.to("meta"), last, 1.0),
    }
    for message, call in wrong.items():
        with pytest.raises(UserError) as told:
            call()
        assert str(told.value).startswith(message) and "\n" not in str(told.value)


# As a GPU does it.


@pytest.mark.parametrize("format", FORMATS)
def test_gathered_rows_give_what_pages_give(format: str) -> None:
    """Some sequences with one query, some with several; the pages around theirs hold NaN."""
    tables, pages = shuffled(LENGTHS)
    whole = [torch.randint(-3, 4, (n, 1, 40), generator=torch.Generator().manual_seed(n)).float() for n in LENGTHS]
    pool, _ = filled(pages, tables, whole, format, plain=40 if format == "fp8" else 0)
    index, _ = filled(pages, tables, whole, "float32", by_column=True)
    index_q = torch.randint(-3, 4, (len(QUERIES.row), 5, 40), generator=torch.Generator().manual_seed(9)).float()
    index_w = torch.randint(-2, 3, (len(QUERIES.row), 5), generator=torch.Generator().manual_seed(8)).float()
    for k in (7, 64, 300):
        expected = select(index_q, index_w, index, tables, *QUERIES, k)
        assert torch.equal(gathered.select(index_q, index_w, pool, tables, *QUERIES, k), expected)

    pool, _ = filled(pages, tables, [draw(n, 1, 40, seed=n) for n in LENGTHS], format, plain=8)
    q = draw(len(QUERIES.row), 3, 40, seed=7)
    kept = select(index_q, index_w, index, tables, *QUERIES, 64)
    for indices in (None, kept):
        expected = attend(q, pool, None, tables, *QUERIES, 0.3, indices, 24)
        ours = gathered.attend(q, pool, None, tables, *QUERIES, 0.3, indices, 24)
        assert not ours[QUERIES.last < 0].any()
        assert (ours - expected).abs().max() <= (1e-5 if format == "float32" else 3e-2) * expected.abs().max()
