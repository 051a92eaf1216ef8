"""Tensors as they lie in memory: views of every kind, and rows more than 2^31 elements apart; Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops import dense_attention, dispatch, index_loss, select_tokens, sparse_attention, triton
from tests.ops.cases import Inputs, gradients, make_inputs

pytestmark = pytest.mark.skipif(triton.obstacle() is not None, reason=str(triton.obstacle()))


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engine themselves."""


def shifted(x: Tensor) -> Tensor:
    """The same values, beginning one element into their storage."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def heads_first(x: Tensor) -> Tensor:
    """`[B,H,T,D]` in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x


def columns_first(x: Tensor) -> Tensor:
    """`[D,...,B]` in memory."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def every_other(x: Tensor) -> Tensor:
    """With gaps in every dimension."""
    wide = x.new_full([2 * n for n in x.shape], 7)
    place = (slice(None, None, 2),) * x.dim()
    wide[place] = x
    return wide[place]


def outputs(inputs: Inputs, first: Tensor, last: Tensor, indices: Tensor, sink: Tensor, engine: str) -> list[Tensor]:
    options = {"engine": engine, "sink": sink}
    sparse = sparse_attention(*inputs.attention, indices, **options)
    dense = dense_attention(*inputs.attention, first=first, last=last, **options)
    teacher = inputs.q, inputs.k
    losses = [
        index_loss(*inputs.index, *teacher, sparse[1].detach(), indices=indices, engine=engine),
        index_loss(*inputs.index, *teacher, dense[1].detach(), first=first, last=last, engine=engine),
    ]
    return [*sparse, *dense, *losses]


@pytest.mark.parametrize("change", [shifted, heads_first, columns_first, every_other])
def test_no_view_changes_a_result(change) -> None:
    """Values, gradients that come back in other strides, and the selection; spans, indices and sink are views too."""
    plain = make_inputs(87, dtype=torch.float32, queries=6, keys=9, width=8, value_width=8)
    first, last = torch.tensor([[0, 1, 2, 0, 3, 4], [0] * 6], dtype=torch.int32), torch.arange(3, 9).expand(2, 6).int()
    sink = torch.linspace(-1, 1, 4)
    indices = select_tokens(*plain.index, 4, first=first, last=last, engine="reference")
    results = []
    for view, engine in ((lambda x: x.clone(), "reference"), (change, "triton")):
        leaves = [view(x).detach().requires_grad_() for x in plain]
        if engine == "triton" and change is not shifted:
            assert not leaves[0].is_contiguous()
        ends, kept = (view(first), view(last)), view(indices)
        chosen = select_tokens(*leaves[3:], 4, first=ends[0], last=ends[1], engine=engine)
        assert torch.equal(chosen, indices)
        out = outputs(Inputs(*leaves), *ends, kept, view(sink), engine)
        results.append([*out, *gradients(out, leaves)])
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_heads_may_begin_more_than_2_to_the_31_elements_apart(tmp_path: Path) -> None:
    """In a file with holes, which takes neither memory nor disk: strides fit 32 bits, twice a stride does not."""
    apart = (1 << 30) + 24
    path = tmp_path / "holes"
    size = 2 * apart + 1024
    with path.open("wb") as file:
        file.truncate(2 * size)
    storage = torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)
    sizes = {"heads": 3, "groups": 3, "width": 8, "value_width": 8, "index_heads": 3, "index_width": 8}
    plain = make_inputs(88, dtype=torch.float16, batch=1, queries=3, keys=5, **sizes)
    plain = plain._replace(q=plain.q / 4)

    def spread(x: Tensor, begin: int) -> Tensor:
        view = storage.as_strided(x.shape, (0, x.shape[-1], apart, 1), begin)
        view.copy_(x)
        return view

    begins = {"q": 0, "k": 128, "v": 256, "index_q": 384}
    distant = plain._replace(**{name: spread(getattr(plain, name), begin) for name, begin in begins.items()})
    first, last = torch.zeros(1, 3, dtype=torch.int32), torch.tensor([[2, 3, 4]], dtype=torch.int32)
    indices = torch.tensor([[[0, 2, -1], [0, 1, 3], [4, 2, 1]]], dtype=torch.int32)
    results = []
    for inputs in (plain, distant):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = outputs(Inputs(*leaves), first, last, indices, torch.zeros(3, dtype=torch.float16), "triton")
        chosen = select_tokens(*inputs.index, 3, first=first, last=last, engine="triton")
        results.append([*out, *gradients(out, leaves), chosen])
    for near, distant_one in zip(*results, strict=True):
        assert torch.equal(near, distant_one)


def test_what_a_grid_or_int32_cannot_count_is_refused() -> None:
    """Views of one element: nothing of that size is allocated."""
    one = torch.zeros(1, 1, 1, 1)
    for shape in ((65_536, 1, 1, 1), (1, (1 << 29) + 1, 2, 1)):
        with pytest.raises(UserError, match="more than 65535 batch entries or 1073741824 rows"):
            dispatch.engine_for(one.expand(shape), engine="triton")
    assert dispatch.engine_for(one.expand(65_535, 1, 1, 1), engine="triton") == "triton"
