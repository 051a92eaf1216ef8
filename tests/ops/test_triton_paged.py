"""What a GPU serves with, in Triton's interpreter, against what a CPU serves with: attention over paged caches, and the
rotation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inazuma.ops import packed, paged, triton
from inazuma.ops.pool import PAGE, Pool
from tests.ops.test_paged import FORMATS, LENGTHS, batch, draw, filled, shuffled

pytestmark = pytest.mark.skipif(triton.obstacle() is not None, reason=str(triton.obstacle()))
QUERIES = batch((0, 5), (0, 199), (2, 128), (3, 63), (1, -1))
kernels = pytest.importorskip("inazuma.ops.triton.paged")
rotation = pytest.importorskip("inazuma.ops.triton.rotation")


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engine themselves."""


def chosen(last: Tensor, k: int) -> Tensor:
    """Positions up to `last` in any order, -1 behind those that there are and at some other places."""
    rows = []
    for n, end in enumerate(last.tolist()):
        order = torch.randperm(end + 1, generator=torch.Generator().manual_seed(n))[:k] if end >= 0 else torch.empty(0)
        row = torch.full((k,), -1, dtype=torch.int32)
        row[: len(order)] = order.int()
        row[n % k] = -1
        rows.append(row)
    return torch.stack(rows)


SHAPES = {
    "absorbed": {"heads": 5, "groups": 1, "width": 40, "value_width": 24, "plain": 8},
    "values past the main columns": {"heads": 3, "groups": 1, "width": 52, "value_width": 44, "plain": 8},
    "grouped": {"heads": 6, "groups": 2, "width": 20, "value_width": None, "plain": 0},
}


@pytest.mark.parametrize(
    ("format", "processors"), [*((format, 1) for format in FORMATS), ("float32", 40)], ids=[*FORMATS, "in shares"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_pages_are_read_where_they_lie(
    shape: str, format: str, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some queries see nothing, some pages are NaN, tables are wrong behind a sequence's end."""
    monkeypatch.setattr(kernels, "processors", lambda device: processors)
    heads, groups, width, value_width, plain = SHAPES[shape].values()
    tables, pages = shuffled(LENGTHS)
    rows = [draw(n, groups, width, seed=n) for n in LENGTHS]
    keys, _ = filled(pages, tables, rows, format, plain=plain)
    values = None
    if value_width is None:
        values, _ = filled(pages, tables, [draw(n, groups, width, seed=1000 + n) for n in LENGTHS], format)
    q = draw(len(QUERIES.row), heads, width, seed=7)
    assert kernels.obstacle(q, keys) is None
    Dv = value_width or width
    for indices in (None, chosen(QUERIES.last, 50)):
        expected = paged.attend(q, keys, values, tables, *QUERIES, 0.3, indices, value_width)
        ours = kernels.attend(q, keys, values, tables, *QUERIES, 0.3, indices, Dv)
        assert not ours[QUERIES.last < 0].any()
        # fp8 and bfloat16 are read exactly here; on a GPU products round to bfloat16.
        assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_wrong_pages_and_positions_are_not_read() -> None:
    pool = Pool(2, 1, 16, "float32")
    pool.data.fill_(1.0)
    q, row = draw(4, 2, 16), torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    tables = torch.tensor([[0, 1, 5], [9, -3, 1]], dtype=torch.int32)
    last = torch.tensor([3 * PAGE - 1, 50 * PAGE, 70, 3 * PAGE - 1], dtype=torch.int32)
    out = kernels.attend(q, pool, pool, tables, row, last, 1.0, None, 16)
    assert torch.allclose(out[[0, 1, 3]], torch.ones(3, 2, 16)) and not out[2].any()
    kept = torch.tensor([[0, 10_000_000, -1]] * 4, dtype=torch.int32)
    out = kernels.attend(q, pool, pool, tables, row, last, 1.0, kept, 16)
    assert torch.allclose(out[:2], torch.ones(2, 2, 16)) and not out[2:].any()
    # Nor is what lies behind the query, on the sequence's own page.
    pool.data[7:] = 5.0
    kept = torch.tensor([[0, 6, 7]], dtype=torch.int32)
    out = kernels.attend(q[:1], pool, pool, tables, row[:1], torch.tensor([6], dtype=torch.int32), 1.0, kept, 16)
    assert torch.allclose(out, torch.ones(1, 2, 16))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rotation_in_place(interleaved: bool, dtype: torch.dtype) -> None:
    angles = draw(30, 12)
    positions = torch.tensor([3, 29, 0, 7, 7], dtype=dtype)
    x = draw(5, 4, 40, seed=3)[:, 1:3]  # rows and heads lie apart
    expected = packed.rotate(x.clone(), positions, angles.cos(), angles.sin(), 9, interleaved)
    assert rotation.rotate(x, positions, angles.cos(), angles.sin(), 9, interleaved) is x
    assert torch.allclose(x, expected, atol=1e-6) and not torch.equal(
        x[..., 9:33], draw(5, 4, 40, seed=3)[:, 1:3, 9:33]
    )


def test_kernels_say_which_pools_they_cannot_read() -> None:
    for width, format, plain, why in (
        (600, "bfloat16", 0, "width"),
        (129, "float32", 0, "width"),
        (42, "fp8", 0, "four"),
    ):
        assert why in kernels.obstacle(draw(1, 1, width), Pool(1, 1, width, format, plain=plain))
    assert kernels.obstacle(draw(1, 1, 576), Pool(1, 1, 576, "fp8", plain=64)) is None
