"""Gradients: against the oracle's autograd, against finite differences, and where they must not flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inazuma.ops import dense_attention, dsa, index_loss, sparse_attention
from tests.ops import oracle
from tests.ops.cases import CHUNKS, assert_close, gradients, make_inputs, reaches, span

FIRST = span([0, 0, 1, 4, 2], [3, 0, 0, 5, 0])
LAST = span([2, 6, 1, 3, 6], [6, 0, 3, 6, 4])  # the fourth query of the first row sees nothing
SINK = torch.tensor([0.3, -2.0, 1.0, 0.0], dtype=torch.float64)


# Gradients are those of the whole computation, however it is cut.
pytestmark = pytest.mark.usefixtures("chunks")


@pytest.fixture
def indices() -> Tensor:
    """Overlapping sets of 0 to 4 keys; keys 0 and 6 of the first row are selected by nobody."""
    rows = [[1, 2, 4, -1], [3, -1, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 5], [2, 5, -1, -1]]
    return torch.tensor([rows, [[0, 3, 4, 6]] * 3 + [[0, -1, -1, -1]] * 2], dtype=torch.int32)


@pytest.mark.parametrize("sink", [None, SINK], ids=["no-sink", "sink"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_has_the_oracles_gradients(indices: Tensor, scale: float | None, sink: Tensor | None) -> None:
    """Of out and lse together, to q, k, v and the sink."""
    leaves = make_inputs(20).leaves()
    sink = None if sink is None else sink.clone().requires_grad_()
    sources = [*leaves.attention] if sink is None else [*leaves.attention, sink]
    for result, keys in (
        (sparse_attention(*leaves.attention, indices, scale=scale, sink=sink), oracle.chosen(indices, 7)),
        (
            dense_attention(*leaves.attention, first=FIRST, last=LAST, scale=scale, sink=sink),
            oracle.visible(2, 5, 7, FIRST, LAST),
        ),
    ):
        expected = oracle.attention(*leaves.attention, keys, scale, sink)
        assert_close(gradients(result, sources), gradients(expected, sources))


@pytest.mark.parametrize("part", [0, 1], ids=["out", "lse"])
def test_out_and_lse_can_be_differentiated_alone(indices: Tensor, part: int) -> None:
    leaves = make_inputs(21).leaves()
    for result, keys in (
        (sparse_attention(*leaves.attention, indices), oracle.chosen(indices, 7)),
        (dense_attention(*leaves.attention, first=FIRST, last=LAST), oracle.visible(2, 5, 7, FIRST, LAST)),
    ):
        expected = oracle.attention(*leaves.attention, keys)
        assert_close(gradients([result[part]], leaves.attention), gradients([expected[part]], leaves.attention))


@pytest.mark.parametrize("wanted", ["q", "k", "v", "sink"])
def test_attention_gives_any_one_gradient_alone(indices: Tensor, wanted: str) -> None:
    """An input that needs no gradient must not change what another receives."""
    values = {**dict(zip("qkv", make_inputs(22).attention, strict=True)), "sink": SINK}
    values[wanted] = values[wanted].clone().requires_grad_()
    for result, keys in (
        (sparse_attention(**values, indices=indices), oracle.chosen(indices, 7)),
        (dense_attention(**values, first=FIRST, last=LAST), oracle.visible(2, 5, 7, FIRST, LAST)),
    ):
        expected = oracle.attention(**values, seen=keys)
        assert_close(gradients(result, [values[wanted]]), gradients(expected, [values[wanted]]))


@pytest.mark.parametrize("scale", [None, 0.7])
def test_index_loss_has_the_oracles_gradients(indices: Tensor, scale: float | None) -> None:
    leaves = make_inputs(23, index_heads=3).leaves()
    q, k, v = (x.detach() for x in leaves.attention)
    for sets, keys in (
        ({"indices": indices}, oracle.chosen(indices, 7)),
        ({"first": FIRST, "last": LAST}, oracle.visible(2, 5, 7, FIRST, LAST)),
        ({}, oracle.visible(2, 5, 7)),
    ):
        _, lse = oracle.attention(q, k, v, keys, scale)
        loss = index_loss(*leaves.index, q, k, lse, scale=scale, **sets)
        expected = oracle.index_loss(*leaves.index, q, k, keys, scale)
        assert_close(loss, expected)
        assert_close(gradients([loss], leaves.index), gradients([expected], leaves.index))


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["index_q", "index_k", "index_w"])
def test_index_loss_gives_any_one_gradient_alone(indices: Tensor, wanted: int) -> None:
    inputs = make_inputs(24)
    index = [*inputs.index]
    index[wanted] = index[wanted].clone().requires_grad_()
    for sets, keys in (
        ({"indices": indices}, oracle.chosen(indices, 7)),
        ({"first": FIRST, "last": LAST}, oracle.visible(2, 5, 7, FIRST, LAST)),
    ):
        _, lse = oracle.attention(*inputs.attention, keys)
        loss = index_loss(*index, inputs.q, inputs.k, lse, **sets)
        expected = oracle.index_loss(*index, inputs.q, inputs.k, keys)
        assert_close(gradients([loss], [index[wanted]]), gradients([expected], [index[wanted]]))


def test_absorbed_attention_where_values_are_columns_of_the_keys(indices: Tensor) -> None:
    """Multi-head latent attention: one group, v = the first columns of k, whose gradients add up in k."""
    inputs = make_inputs(25, groups=1, width=5)
    q, k = inputs.q.requires_grad_(), inputs.k.requires_grad_()
    v = k[..., :3]
    for result, keys in (
        (sparse_attention(q, k, v, indices, scale=0.4), oracle.chosen(indices, 7)),
        (dense_attention(q, k, v, first=FIRST, last=LAST, scale=0.4), oracle.visible(2, 5, 7, FIRST, LAST)),
    ):
        expected = oracle.attention(q, k, v, keys, 0.4)
        assert_close(result, expected)
        assert_close(gradients(result, [q, k]), gradients(expected, [q, k]))


@pytest.mark.parametrize(
    "chunks", [CHUNKS["a few queries, keys gathered"], CHUNKS["one query at a time"]], indirect=True
)
def test_finite_differences_agree() -> None:
    """gradcheck on tiny shapes; its rows all see a key, for −inf has no finite difference."""
    leaves = make_inputs(26, batch=1, queries=3, keys=4, heads=2, groups=1, width=2, index_width=2).leaves()
    indices = torch.tensor([[[0, -1, -1], [1, 2, -1], [0, 1, 3]]], dtype=torch.int32)
    first, last = span([0, 1, 0]), span([0, 2, 3])
    sink = torch.tensor([0.2, -0.4], dtype=torch.float64, requires_grad=True)
    attention = (*leaves.attention, sink)
    assert torch.autograd.gradcheck(lambda q, k, v, s: sparse_attention(q, k, v, indices, sink=s), attention)
    assert torch.autograd.gradcheck(
        lambda q, k, v, s: dense_attention(q, k, v, first=first, last=last, sink=s), attention
    )
    q, k, v = (x.detach() for x in leaves.attention)
    _, lse = sparse_attention(q, k, v, indices)
    assert torch.autograd.gradcheck(lambda *index: index_loss(*index, q, k, lse, indices=indices), leaves.index)
    _, lse = dense_attention(q, k, v, first=first, last=last)
    assert torch.autograd.gradcheck(lambda *index: index_loss(*index, q, k, lse, first=first, last=last), leaves.index)


def test_the_loss_teaches_only_the_indexer(indices: Tensor) -> None:
    """Even where q, k and the lse that make the target could carry a gradient."""
    leaves = make_inputs(27).leaves()
    for (_, lse), sets in (
        (sparse_attention(*leaves.attention, indices), {"indices": indices}),
        (dense_attention(*leaves.attention), {}),
    ):
        loss = index_loss(*leaves.index, leaves.q, leaves.k, lse, **sets)
        assert [reaches(loss, x) for x in leaves] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("stage", "out_teaches_attention", "loss_teaches_indexer"),
    [("dense", True, True), ("warmup", False, True), ("sparse", True, True), ("frozen", True, None)],
)
def test_stages_separate_their_gradients(
    stage: str, out_teaches_attention: bool, loss_teaches_indexer: bool | None
) -> None:
    leaves = make_inputs(28).leaves()
    result = dsa(*leaves, topk=3, stage=stage)
    assert [reaches(result.out, x) for x in leaves] == [out_teaches_attention] * 3 + [False] * 3
    if loss_teaches_indexer is None:
        assert result.loss is None
    else:
        assert [reaches(result.loss, x) for x in leaves] == [False] * 3 + [loss_teaches_indexer] * 3
    if stage == "warmup":
        assert not result.out.requires_grad


@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse", "frozen"])
def test_stages_have_the_oracles_values_and_gradients(stage: str) -> None:
    leaves = make_inputs(29).leaves()
    result = dsa(*leaves, topk=2, stage=stage, first=FIRST, last=LAST, scale=0.6)
    keys = oracle.visible(2, 5, 7, FIRST, LAST)
    if stage in ("sparse", "frozen"):
        indices = oracle.select(oracle.index_scores(*leaves.index), keys, 2)
        assert torch.equal(result.indices, indices)
        keys = oracle.chosen(indices, 7)
    else:
        assert result.indices is None
    out, _ = oracle.attention(*leaves.attention, keys, 0.6)
    assert_close(result.out, out)
    if stage != "warmup":
        assert_close(gradients([result.out], leaves.attention), gradients([out], leaves.attention))
    if stage != "frozen":
        loss = oracle.index_loss(*leaves.index, leaves.q, leaves.k, keys, 0.6)
        assert_close(result.loss, loss)
        assert_close(gradients([result.loss], leaves.index), gradients([loss], leaves.index))


def test_dense_without_an_indexer_has_the_same_output() -> None:
    leaves = make_inputs(30).leaves()
    result = dsa(*leaves.attention, None, None, None, topk=3, stage="dense")
    assert result.loss is None and result.indices is None
    out, _ = oracle.attention(*leaves.attention, oracle.visible(2, 5, 7))
    assert_close(result.out, out)
    assert_close(gradients([result.out], leaves.attention), gradients([out], leaves.attention))


@pytest.mark.parametrize("stage", ["sparse", "frozen"])
def test_a_layer_may_share_the_selection_of_another(indices: Tensor, stage: str) -> None:
    """Given indices are attended to and learned from instead of the layer's own best."""
    leaves = make_inputs(31).leaves()
    result = dsa(*leaves, topk=1, stage=stage, indices=indices)
    keys = oracle.chosen(indices, 7)
    assert torch.equal(result.indices, indices)
    out, _ = oracle.attention(*leaves.attention, keys)
    assert_close(result.out, out)
    assert_close(gradients([result.out], leaves.attention), gradients([out], leaves.attention))
    if stage == "sparse":
        loss = oracle.index_loss(*leaves.index, leaves.q, leaves.k, keys)
        assert_close(result.loss, loss)
        assert_close(gradients([result.loss], leaves.index), gradients([loss], leaves.index))
