"""The traps of sparse attention, each under its name, against the dense float64 oracle.

Those of the model (rotary layouts, norms, softmax scale, shared indices) are tested with the model.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from inazuma.ops import dense_attention, dsa, index_loss, select_tokens, sparse_attention
from tests.ops import oracle
from tests.ops.cases import Inputs, assert_close, gradients, make_inputs, span


def assert_matches_oracle(
    inputs: Inputs, topk: int, first: Tensor | None = None, last: Tensor | None = None, tolerance: float = 1e-9
) -> None:
    """Every operator on the same inputs: selection exactly, everything else to `tolerance`."""
    q, k, v = inputs.attention
    spans = {"first": first, "last": last}
    seen = oracle.visible(*q.shape[:2], k.shape[1], first, last)
    indices = oracle.select(oracle.index_scores(*inputs.index), seen, topk)
    picked = oracle.chosen(indices, k.shape[1])

    assert torch.equal(select_tokens(*inputs.index, topk, **spans), indices)
    out, lse = dense_attention(q, k, v, **spans)
    assert_close((out, lse), oracle.attention(q, k, v, seen), tolerance)
    assert_close(index_loss(*inputs.index, q, k, lse, **spans), oracle.index_loss(*inputs.index, q, k, seen), tolerance)
    out, lse = sparse_attention(q, k, v, indices)
    assert_close((out, lse), oracle.attention(q, k, v, picked), tolerance)
    loss = index_loss(*inputs.index, q, k, lse, indices=indices)
    assert_close(loss, oracle.index_loss(*inputs.index, q, k, picked), tolerance)


# Trap 5: exact zeros after the ReLU are ties, and the order must break them.


def test_trap_5_exact_zeros_are_broken_by_the_lower_index() -> None:
    """No product is positive, so every score is zero and the lowest visible indices win."""
    index_q, index_k = torch.ones(1, 4, 2, 3), -torch.ones(1, 9, 3)
    index_w = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    indices = select_tokens(index_q, index_k, index_w, 3, first=span([0, 1, 4, 7]), last=span([8, 8, 8, 8]))
    assert indices.tolist() == [[[0, 1, 2], [1, 2, 3], [4, 5, 6], [7, 8, -1]]]


def test_trap_5_zeros_compete_with_positive_and_negative_scores() -> None:
    """With one index head of negative weight the zeros are the best scores, not the worst."""
    index_k = torch.tensor([[[2.0], [-1.0], [1.0], [-3.0], [0.0], [1.0]]])
    last = span([5, 5])
    best_zeros_then_ties = select_tokens(
        torch.ones(1, 2, 1, 1), index_k, torch.tensor([[[-1.0], [1.0]]]), 4, first=span([0, 0]), last=last
    )
    # Negative weight: scores -2 0 -1 0 0 -1. Positive weight: 2 0 1 0 0 1.
    assert best_zeros_then_ties.tolist() == [[[1, 2, 3, 4], [0, 1, 2, 5]]]


@pytest.mark.parametrize("weight", [1.0, -1.0, 0.0, -0.0])
def test_trap_5_negative_zero_equals_zero(weight: float) -> None:
    """Keys of 0.0 and −0.0 in turn give zeros of either sign on the way to the score."""
    index_k = torch.tensor([0.0, -0.0, -1.0, 0.0, -0.0, -0.0]).view(1, 6, 1)
    for order in (index_k, -index_k, index_k.flip(1)):
        index_k = order.clamp(max=0.0)
        indices = select_tokens(torch.ones(1, 1, 1, 1), index_k, torch.full((1, 1, 1), weight), 3)
        assert indices.tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("chunks")
def test_trap_5_ties_survive_any_chunk_size(dtype: torch.dtype) -> None:
    """One index head of width one: nearly every row ties at its k-th score."""
    inputs = make_inputs(5, queries=13, keys=29, index_heads=1, index_width=1, dtype=dtype, largest_integer=2)
    scores = oracle.index_scores(*inputs.index)
    for k in (1, 3, 7, 28):
        expected = oracle.select(scores, oracle.visible(2, 13, 29), k)
        assert torch.equal(select_tokens(*inputs.index, k), expected)


def test_trap_5_no_gradient_flows_through_an_exact_zero() -> None:
    """The ReLU's subgradient at zero is zero, so zero-padded keys and heads never receive a gradient."""
    inputs = make_inputs(1, keys=5)
    index_q, index_k = inputs.index_q.clone(), inputs.index_k.clone()
    index_q[:, :, 1], index_k[:, 2] = 0.0, 0.0
    leaves = inputs._replace(index_q=index_q, index_k=index_k).leaves()
    _, lse = dense_attention(*inputs.attention)
    of_q, of_k, of_w = gradients([index_loss(*leaves.index, inputs.q, inputs.k, lse)], leaves.index)
    assert not of_q[:, :, 1].any() and not of_k[:, 2].any() and not of_w[:, :, 1].any()
    assert of_q[:, :, 0].any() and of_k.any() and of_w.any()


# Trap 6: rows with fewer than k visible keys attend to all of them; −1 is never gathered; never NaN.


def test_trap_6_short_rows_attend_to_every_visible_key() -> None:
    """With k as large as the longest row, sparse attention is dense attention."""
    inputs = make_inputs(queries=6, keys=6)
    sparse = dsa(*inputs, topk=6, stage="sparse")
    dense = dsa(*inputs, topk=6, stage="dense")
    assert_close((sparse.out, sparse.loss), (dense.out, dense.loss))
    assert sparse.indices[0, :3].tolist() == [[0] + [-1] * 5, [0, 1] + [-1] * 4, [0, 1, 2] + [-1] * 3]


def test_trap_6_very_low_scores_still_beat_padding() -> None:
    """Scores near the lowest float32 belong to visible keys; the padding of a row has no score at all."""
    index_q, index_k = torch.full((1, 1, 1, 1), 1.5e19), torch.full((1, 5, 1), 2e19)
    indices = select_tokens(index_q, index_k, torch.full((1, 1, 1), -1.0), 4, first=span([2]), last=span([3]))
    assert indices.tolist() == [[[2, 3, -1, -1]]]


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e300])
def test_trap_6_padding_is_never_gathered(garbage: float) -> None:
    """Keys that no query selected may hold anything, the first and the last (where −1 would point) above all."""
    inputs = make_inputs(keys=7)
    indices = torch.tensor([[[2, 4, -1, -1]] * 5, [[-1, -1, -1, -1]] * 2 + [[1, 2, 3, 5]] * 3], dtype=torch.int32)
    unused = ~oracle.chosen(indices, 7).any(dim=1)
    assert unused[:, [0, 6]].all()
    dirty = inputs._replace(k=inputs.k.clone(), v=inputs.v.clone(), index_k=inputs.index_k.clone())
    for x in (dirty.k, dirty.v, dirty.index_k):
        x[unused] = min(garbage, torch.finfo(x.dtype).max) if math.isfinite(garbage) else garbage

    results = []
    for case in (inputs.leaves(), dirty.leaves()):
        out, lse = sparse_attention(*case.attention, indices)
        loss = index_loss(*case.index, case.q, case.k, lse, indices=indices)
        results.append([out, lse, loss, *gradients([out, lse], case.attention), *gradients([loss], case.index)])
    clean, with_garbage = results
    assert_close(with_garbage, clean)
    of_k, of_v, of_index_k = with_garbage[4], with_garbage[5], with_garbage[7]
    assert not of_k[unused].any() and not of_v[unused].any() and not of_index_k[unused].any()


@pytest.mark.usefixtures("chunks")
def test_trap_6_a_row_without_keys_is_zero_and_never_nan() -> None:
    """Out 0, lse −inf, no gradient and no share in the loss; the other rows are as if it were not there."""
    leaves = make_inputs(batch=1, queries=4, keys=6).leaves()
    first, last = span([0, 3, 5, 2]), span([5, 2, 4, 4])  # queries 1 and 2 see nothing
    seen = oracle.visible(1, 4, 6, first, last)
    indices = select_tokens(*leaves.index, 2, first=first, last=last)
    assert (indices[0, 1:3] == -1).all()

    for keys, result in (
        (seen, dense_attention(*leaves.attention, first=first, last=last)),
        (oracle.chosen(indices, 6), sparse_attention(*leaves.attention, indices)),
    ):
        out, lse = result
        assert not out[0, 1:3].any() and (lse[0, 1:3] == -math.inf).all()
        expected = oracle.attention(*leaves.attention, keys)
        assert_close(result, expected)
        assert_close(gradients(result, leaves.attention), gradients(expected, leaves.attention))

        sets = {"first": first, "last": last} if keys is seen else {"indices": indices}
        loss = index_loss(*leaves.index, leaves.q, leaves.k, lse, **sets)
        expected_loss = oracle.index_loss(*leaves.index, leaves.q, leaves.k, keys)
        assert_close(loss, expected_loss)
        assert_close(gradients([loss], leaves.index), gradients([expected_loss], leaves.index))


@pytest.mark.usefixtures("chunks")
def test_trap_6_a_row_without_keys_has_only_its_sink() -> None:
    inputs, sink = make_inputs(batch=1, queries=2), torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    nothing = torch.full((1, 2, 3), -1, dtype=torch.int32)
    for out, lse in (
        sparse_attention(*inputs.attention, nothing, sink=sink),
        dense_attention(*inputs.attention, first=span([4, 4]), last=span([3, 0]), sink=sink),
    ):
        assert not out.any()
        assert_close(lse, sink.expand(1, 2, 4))


@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
def test_trap_6_when_no_query_sees_a_key_the_loss_is_zero(stage: str) -> None:
    leaves = make_inputs(batch=1, queries=2).leaves()
    result = dsa(*leaves, topk=3, stage=stage, first=span([1, 5]), last=span([0, 4]))
    assert not result.out.any() and result.loss.item() == 0.0
    assert not any(x.any() for x in gradients([result.loss], leaves.index))


@pytest.mark.usefixtures("chunks")
def test_trap_6_extreme_logits_give_no_nan() -> None:
    """Softmaxes that overflow without their maximum, and targets that underflow to zero (0 · log 0 is 0)."""
    inputs = make_inputs(3, largest_integer=3, dtype=torch.float32)
    scaled = inputs._replace(q=300.0 * inputs.q, index_w=1000.0 * inputs.index_w)
    assert_matches_oracle(scaled, topk=3, tolerance=1e-4)


# Trap 7: packed documents.


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("topk", [2, 5])
def test_trap_7_packed_documents_are_as_if_alone(topk: int) -> None:
    """No selection crosses a boundary; values and gradients are the documents' own; the loss is the queries' mean."""
    lengths = [1, 7, 4]
    total = sum(lengths)
    packed = make_inputs(7, batch=1, queries=total, keys=total, largest_integer=2).leaves()
    begin = torch.tensor([0] * 1 + [1] * 7 + [8] * 4, dtype=torch.int32)[None]
    end = torch.arange(total, dtype=torch.int32)[None]
    alone = [Inputs(*parts).leaves() for parts in zip(*(x.split(lengths, dim=1) for x in packed), strict=True)]

    for stage in ("dense", "sparse"):
        whole = dsa(*packed, topk=topk, stage=stage, first=begin, last=end)
        each = [dsa(*document, topk=topk, stage=stage) for document in alone]
        assert_close(whole.out, torch.cat([x.out for x in each], dim=1))
        mean = torch.stack([n * x.loss for n, x in zip(lengths, each, strict=True)]).sum() / total
        assert_close(whole.loss, mean)
        if stage == "sparse":
            begins = (0, 1, 8)
            shifted = [torch.where(x.indices < 0, -1, x.indices + b) for x, b in zip(each, begins, strict=True)]
            assert torch.equal(whole.indices, torch.cat(shifted, dim=1))
            inside = (whole.indices >= begin[..., None]) & (whole.indices <= end[..., None])
            assert (inside | (whole.indices == -1)).all()

        of_packed = gradients([whole.loss, whole.out.sum()], packed)
        of_alone = gradients([mean, sum(x.out.sum() for x in each)], [x for document in alone for x in document])
        for i, gradient in enumerate(of_packed):
            assert_close(gradient, torch.cat(of_alone[i :: len(packed)], dim=1))


# Trap 8: the target is the mean over heads of the softmaxes; one visible key teaches nothing.


def test_trap_8_the_target_is_the_mean_of_the_heads_softmaxes() -> None:
    """Two heads sure of different keys: the mean of softmaxes is (1/2, 1/2), and an even student has no loss.

    A softmax of the mean logits, or heads summed without the 1/H, would not give zero; neither would a student that
    is even over all three keys.
    """
    k = torch.eye(3, dtype=torch.float64).view(1, 3, 1, 3)
    q = 200.0 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64).view(1, 1, 2, 3)
    index_q, index_k = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([[[9.0], [9.0], [0.0]]]).double()
    last, first = span([2]), span([0])
    _, lse = dense_attention(q, k, k, first=first, last=last, scale=1.0)

    def loss(weight: float) -> float:
        index_w = torch.full((1, 1, 1), weight, dtype=torch.float64)
        return index_loss(index_q, index_k, index_w, q, k, lse, first=first, last=last, scale=1.0).item()

    assert loss(100.0) == pytest.approx(0.0, abs=1e-12)
    assert loss(0.0) == pytest.approx(math.log(3 / 2), abs=1e-12)


@pytest.mark.usefixtures("chunks")
def test_trap_8_one_visible_key_has_no_loss_and_no_gradient() -> None:
    leaves = make_inputs(queries=3, keys=3).leaves()
    only = torch.arange(3, dtype=torch.int32).expand(2, 3)
    for result in (
        dsa(*leaves, topk=2, stage="warmup", first=only, last=only),
        dsa(*leaves, topk=2, stage="sparse", first=only, last=only),
        dsa(*leaves, topk=1, stage="sparse"),
    ):
        assert result.loss.item() == pytest.approx(0.0, abs=1e-12)
        assert not any(x.any() for x in gradients([result.loss], leaves.index))


def test_trap_8_one_visible_key_has_no_gradient_whatever_the_rounding_of_lse() -> None:
    """An lse of another engine makes the target 1 to rounding only; that must not become a gradient."""
    leaves = make_inputs(queries=3, keys=3, dtype=torch.float32).leaves()
    only = torch.arange(3, dtype=torch.int32).expand(2, 3)
    _, lse = dense_attention(*leaves.attention, first=only, last=only)
    for sets in ({"first": only, "last": only}, {"indices": only[..., None]}):
        loss = index_loss(*leaves.index, leaves.q, leaves.k, lse + 1e-3, **sets)
        assert loss.item() == pytest.approx(0.0, abs=2e-3)
        assert not any(x.any() for x in gradients([loss], leaves.index))


# Trap 10: awkward shapes.

SHAPES = {
    "no tile divides the lengths": {"queries": 37, "keys": 37},
    "primes everywhere": {"queries": 7, "keys": 31, "width": 5, "value_width": 3, "index_width": 7, "index_heads": 3},
    "one query, many keys": {"queries": 1, "keys": 211},
    "one query, one key": {"queries": 1, "keys": 1},
    "one head": {"heads": 1, "groups": 1, "index_heads": 1},
    "a group for each head": {"heads": 4, "groups": 4},
    "one group": {"heads": 4, "groups": 1},
    "values wider than keys": {"width": 2, "value_width": 9},
    "everything is one": {"batch": 1, "queries": 1, "keys": 1, "heads": 1, "groups": 1, "width": 1, "value_width": 1},
}


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_trap_10_awkward_shapes(shape: dict[str, int]) -> None:
    assert_matches_oracle(make_inputs(10, **shape), topk=3)


def test_trap_10_more_queries_than_keys() -> None:
    """Queries that attend to another sequence, shorter than their own."""
    inputs = make_inputs(15, batch=1, queries=6, keys=3)
    assert_matches_oracle(inputs, topk=2, first=span([0, 0, 0, 1, 2, 0]), last=span([0, 1, 2, 2, 2, -1]))


@pytest.mark.parametrize("topk", [7, 8, 50])
def test_trap_10_k_of_all_keys_or_more(topk: int) -> None:
    """The width of the answer is k even where only S keys exist."""
    inputs = make_inputs(11, keys=7)
    assert select_tokens(*inputs.index, topk).shape == (2, 5, topk)
    assert_matches_oracle(inputs, topk)


@pytest.mark.usefixtures("chunks")
def test_trap_10_batch_rows_of_different_offsets() -> None:
    """Left-padded prompts and cache slots filled to different lengths, in one call."""
    inputs = make_inputs(12, batch=3, queries=3, keys=9, largest_integer=2)
    first = span([0, 0, 0], [4, 4, 4], [2, 2, 2])
    last = span([0, 1, 2], [4, 5, 6], [6, 7, 8])
    assert_matches_oracle(inputs, topk=3, first=first, last=last)


def test_trap_10_spans_reach_past_the_keys() -> None:
    """Spans are cut to the keys that exist; one that lies wholly outside them sees nothing."""
    inputs = make_inputs(13, batch=1, queries=6, keys=5)
    first, last = span([-3, 2, -9, -4, 5, 7]), span([1, 99, 99, -1, 6, 9])
    assert_matches_oracle(inputs, topk=2, first=first, last=last)
    assert (select_tokens(*inputs.index, 2, first=first, last=last)[0, 3:] == -1).all()


def test_trap_10_either_end_of_the_span_may_be_left_to_its_default() -> None:
    inputs = make_inputs(14, batch=1, queries=4, keys=6)
    assert_matches_oracle(inputs, topk=2, first=span([1, 1, 3, 5]))
    assert_matches_oracle(inputs, topk=2, last=span([5, 0, 2, 4]))
