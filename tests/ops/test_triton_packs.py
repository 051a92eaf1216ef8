"""Packs of queries with few heads: the union of what they keep, and attention over it, in Triton's interpreter."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from inazuma.ops import sparse_attention, triton
from inazuma.ops.triton import tiles
from tests.ops.cases import gradients, make_inputs

pytestmark = pytest.mark.skipif(triton.obstacle() is not None, reason=str(triton.obstacle()))


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engine themselves."""


def selections(B: int, T: int, S: int, K: int, seed: int) -> Tensor:
    """Much alike among neighbours, in any order, with empty places; the second query keeps nothing."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(B, 1, S, generator=generator) + 0.3 * torch.rand(B, T, S, generator=generator)
    indices = scores.topk(K, dim=-1).indices.int()
    indices[torch.rand(B, T, K, generator=generator) < 0.2] = -1
    indices[:, 1] = -1
    return indices


@pytest.mark.parametrize("pack", [1, 3, 8])
@pytest.mark.parametrize("slab", [1, 1 << 28])
def test_a_union_lists_who_keeps_what(pack: int, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blocks there are of kept keys, of keys and of packs."""
    from inazuma.ops.triton.packs import unions

    B, T, S = 2, 13, 21
    indices = selections(B, T, S, 6, seed=1)
    monkeypatch.setattr(tiles, "UNION_BLOCK", 4)
    monkeypatch.setattr(tiles, "SELECT_BLOCK", 8)
    seen = 0
    with patch("inazuma.ops.triton.launch.SLAB_BYTES", slab):
        for union in unions(indices, S, pack):
            for b, entry in enumerate(indices[union.packs.batch]):
                for p in range(union.packs.size):
                    begin = (union.packs.begin + p) * pack
                    rows = [set(row.tolist()) - {-1} for row in entry[begin : begin + pack]]
                    count = int(union.counts[b, p])
                    keys, bits = union.keys[b, p, :count].tolist(), union.holders[b, p, :count].tolist()
                    assert keys == sorted(set().union(*rows))
                    assert bits == [sum((key in row) << i for i, row in enumerate(rows)) for key in keys]
                    seen += 1
    assert seen == B * -(-T // pack)


SHAPES = {
    "8 heads, values in keys": {"heads": 8, "groups": 1, "width": 24, "value_width": 16},
    "5 heads": {"heads": 5, "groups": 1, "width": 7, "value_width": 5},
    "groups of 2": {"heads": 6, "groups": 3, "width": 33, "value_width": 17},
    "1 head": {"heads": 1, "groups": 1, "width": 16, "value_width": 16},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_packed_attention_is_the_definition(sizes: dict[str, int], dtype: torch.dtype) -> None:
    """Forward and backward, with a sink; one pack to a slab, as well as all."""
    B, T, S, K = 1, 11, 24, 12
    inputs = make_inputs(86, batch=B, queries=T, keys=S, dtype=dtype, **sizes)
    inputs = inputs._replace(q=inputs.q * 2)
    indices, sink = selections(B, T, S, K, seed=2), torch.randn(sizes["heads"], dtype=torch.float64).to(dtype)
    assert tiles.packs(sizes["heads"] // sizes["groups"], S, K)
    absorbed = sizes["groups"] == 1 and sizes["width"] == 24
    results = []
    for engine, cast, slab in (
        ("reference", Tensor.double, 1 << 28),
        ("triton", Tensor.clone, 1 << 28),
        ("triton", Tensor.clone, 1),
    ):
        leaves = [cast(x).requires_grad_() for x in (*inputs.attention, sink)]
        v = leaves[1][..., :16] if absorbed else leaves[2]
        with patch("inazuma.ops.triton.launch.SLAB_BYTES", slab):
            outputs = sparse_attention(leaves[0], leaves[1], v, indices, sink=leaves[3], engine=engine)
            results.append([*outputs, *gradients(outputs, leaves)])
    expected, whole, cut = results
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    for e, w, c in zip(expected, whole, cut, strict=True):
        assert torch.equal(w, c)
        assert (w.double() - e).abs().max() <= tolerance * max(1.0, float(e.detach().abs().max()))


def test_packs_are_made_by_shape_alone() -> None:
    """Where the union of a pack, at most all keys, cannot cost twice the products of padded rows."""
    assert tiles.packs(heads=8, keys=2119, kept=2048)
    assert tiles.packs(heads=8, keys=4 * 2048, kept=2048)
    assert not tiles.packs(heads=8, keys=4 * 2048 + 1, kept=2048)
    assert not tiles.packs(heads=17, keys=2048, kept=2048)
    hopper, ampere, amd = tiles.Limits(232_448, 32), tiles.Limits(101_376, 32), tiles.SMALLEST
    latent = tiles.Widths(576, 0, 8, exact=False)
    for gpu, forward, backward in ((hopper, 8, 4), (ampere, 4, 2), (amd, 4, 2)):
        for tile, pack in (
            (tiles.forward(gpu, latent, True, True), forward),
            (tiles.backward_queries(gpu, latent, True, True), backward),
        ):
            assert tile.pack == pack and tile.rows == 8 * pack
        assert tiles.forward(gpu, latent, True).pack == tiles.forward(gpu, latent, False, True).pack == 1
