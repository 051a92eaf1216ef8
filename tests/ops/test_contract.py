"""The contract's letter: shapes, dtypes, layouts, chunk sizes, autocast, and one clear line for a wrong argument."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops import dense_attention, dsa, index_loss, select_tokens, sparse_attention
from inazuma.ops import reference as engine
from tests.ops import oracle
from tests.ops.cases import Inputs, assert_close, gradients, make_inputs, span

STAGES = ["dense", "warmup", "sparse", "frozen"]
PRECISE = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
"""The dtype of lse and loss for each dtype of the inputs."""


# Shapes and dtypes.


@pytest.mark.parametrize("dtype", PRECISE)
def test_shapes_and_dtypes_of_the_operators(dtype: torch.dtype) -> None:
    inputs = make_inputs(dtype=dtype)
    indices = select_tokens(*inputs.index, 3)
    assert indices.shape == (2, 5, 3) and indices.dtype == torch.int32 and not indices.requires_grad
    for out, lse in (sparse_attention(*inputs.attention, indices), dense_attention(*inputs.attention)):
        assert out.shape == (2, 5, 4, 2) and out.dtype == dtype
        assert lse.shape == (2, 5, 4) and lse.dtype == PRECISE[dtype]
        loss = index_loss(*inputs.index, inputs.q, inputs.k, lse)
        assert loss.shape == () and loss.dtype == PRECISE[dtype]


@pytest.mark.parametrize("stage", STAGES)
def test_what_each_stage_returns(stage: str) -> None:
    result = dsa(*make_inputs(), topk=3, stage=stage)
    assert result._fields == ("out", "loss", "indices")
    assert result.out.shape == (2, 5, 4, 2)
    assert (result.loss is None) == (stage == "frozen")
    assert (result.indices is None) == (stage in ("dense", "warmup"))


def test_indices_ascend_and_padding_ends_the_row() -> None:
    indices = select_tokens(*make_inputs(40, queries=30, keys=30).index, 6)
    assert (indices[:, :5, 5] == -1).all() and (indices[:, 5:] >= 0).all()
    for row in indices.flatten(0, 1).tolist():
        taken = [s for s in row if s >= 0]
        assert taken == sorted(set(taken)) and row == taken + [-1] * (6 - len(taken))


def test_a_selection_with_padding_anywhere_means_the_same_set() -> None:
    """Indices of another origin need not ascend, nor keep their −1 at the end."""
    inputs = make_inputs(41, batch=1, queries=2)
    tidy = torch.tensor([[[1, 4, 6, -1], [0, 2, -1, -1]]], dtype=torch.int32)
    untidy = torch.tensor([[[6, -1, 1, 4], [-1, 2, -1, 0]]], dtype=torch.int32)
    assert_close(sparse_attention(*inputs.attention, untidy), sparse_attention(*inputs.attention, tidy))


# Precision.


def test_bfloat16_scores_are_accumulated_in_float32() -> None:
    """Whole-number scores in the hundreds that bfloat16 could not tell apart select as in float64."""
    inputs = make_inputs(42, queries=20, keys=60, index_width=16, dtype=torch.bfloat16, largest_integer=9)
    expected = oracle.select(oracle.index_scores(*inputs.index), oracle.visible(2, 20, 60), 8)
    assert torch.equal(select_tokens(*inputs.index, 8), expected)


def test_weights_keep_their_float32_beside_bfloat16_queries() -> None:
    """index_w may be float32 where index_q and index_k are bfloat16; rounding it would make these scores tie."""
    index_q = torch.eye(2, dtype=torch.bfloat16).view(1, 1, 2, 2)
    index_k = torch.eye(2, dtype=torch.bfloat16).view(1, 2, 2)
    index_w = torch.tensor([[[1.0, 1.0 + 2.0**-20]]])
    assert select_tokens(index_q, index_k, index_w, 1).tolist() == [[[1]]]


def test_bfloat16_values_are_those_of_float64_but_for_one_rounding() -> None:
    inputs = make_inputs(43, queries=20, keys=40, width=16, value_width=8, dtype=torch.bfloat16)
    indices = select_tokens(*inputs.index, 9)
    for (out, lse), keys, sets in (
        (sparse_attention(*inputs.attention, indices), oracle.chosen(indices, 40), {"indices": indices}),
        (dense_attention(*inputs.attention), oracle.visible(2, 20, 40), {}),
    ):
        expected_out, expected_lse = oracle.attention(*inputs.attention, keys)
        torch.testing.assert_close(out.double(), expected_out, rtol=2**-8, atol=1e-6)
        assert_close(lse, expected_lse, 1e-5)
        loss = index_loss(*inputs.index, inputs.q, inputs.k, lse, **sets)
        assert_close(loss, oracle.index_loss(*inputs.index, inputs.q, inputs.k, keys), 1e-5)


def test_bfloat16_gradients_are_those_of_float64_but_for_rounding() -> None:
    leaves = make_inputs(44, queries=20, keys=40, width=16, value_width=8, dtype=torch.bfloat16).leaves()
    indices = select_tokens(*leaves.index, 9)
    keys = oracle.chosen(indices, 40)
    result = sparse_attention(*leaves.attention, indices)
    expected = oracle.attention(*(x.double() for x in leaves.attention), keys)
    loss = index_loss(*leaves.index, leaves.q, leaves.k, result[1], indices=indices)
    expected_loss = oracle.index_loss(*(x.double() for x in leaves.index), leaves.q, leaves.k, keys)
    pairs = [
        *zip(gradients([result[0]], leaves.attention), gradients([expected[0]], leaves.attention), strict=True),
        *zip(gradients([loss], leaves.index), gradients([expected_loss], leaves.index), strict=True),
    ]
    for actual, wanted in pairs:
        assert actual.dtype == torch.bfloat16
        assert (actual.double() - wanted.double()).abs().max() <= 0.02 * wanted.double().abs().max()


@pytest.mark.usefixtures("chunks")
def test_bfloat16_gradients_of_a_popular_key_are_summed_in_float32() -> None:
    """A thousand ones: a sum in bfloat16 would stop growing at 256."""
    sizes = {"batch": 1, "queries": 1000, "keys": 2, "heads": 1, "groups": 1, "value_width": 1}
    leaves = make_inputs(45, dtype=torch.bfloat16, **sizes).leaves()
    only = torch.zeros(1, 1000, dtype=torch.int32)
    for out, _ in (
        sparse_attention(*leaves.attention, only[..., None]),
        dense_attention(*leaves.attention, first=only, last=only),
    ):
        (gradient,) = torch.autograd.grad(out, [leaves.v], torch.ones_like(out))
        assert gradient.flatten().tolist() == [1000.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", STAGES)
def test_autocast_changes_nothing(stage: str, dtype: torch.dtype) -> None:
    """The operators choose their own precision: forward and backward are bitwise those outside autocast."""
    results = []
    for enabled in (False, True):
        leaves = make_inputs(46, dtype=dtype, width=8, queries=12, keys=12).leaves()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out, loss, indices = dsa(*leaves, topk=4, stage=stage)
            outputs = [x for x in (out, loss) if x is not None]
            results.append([*outputs, *([] if indices is None else [indices]), *gradients(outputs, leaves)])
    for plain, autocast in zip(*results, strict=True):
        assert plain.dtype == autocast.dtype and torch.equal(plain, autocast)


# Layouts, chunks, repetition.


def everything(inputs: Inputs, topk: int = 3) -> list[Tensor]:
    """The stages' outputs and the gradients of their sum with respect to `inputs`, selection first."""
    sparse = dsa(*inputs, topk=topk, stage="sparse")
    dense = dsa(*inputs, topk=topk, stage="dense")
    outputs = [sparse.out, sparse.loss, dense.out, dense.loss]
    return [sparse.indices, *outputs, *gradients(outputs, inputs)]


def test_non_contiguous_inputs_give_the_same() -> None:
    """Heads moved behind time, columns of a wider tensor, and every other row of a longer one."""
    leaves = make_inputs(47).leaves()
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
        lambda x: torch.cat([x, x], dim=-1)[..., : x.shape[-1]],
        lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        lambda x: x.flip(0).contiguous().flip(0)[:, :, ...],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # aligned to one element only
    ]
    expected = everything(leaves)
    for change in layouts:
        changed = leaves.map(change)
        assert_close(everything(changed), expected, 1e-12)


def test_expanded_inputs_give_the_same() -> None:
    """Stride 0: one sequence's keys shared by the batch, as in sampling several answers to one prompt."""
    leaves = make_inputs(48).leaves()
    shared = leaves._replace(
        k=leaves.k[:1].expand(2, -1, -1, -1),
        v=leaves.v[:1].expand(2, -1, -1, -1),
        index_k=leaves.index_k[:1].expand(2, -1, -1),
    )
    assert_close(
        everything(shared), everything(shared.map(lambda x: x.clone(memory_format=torch.contiguous_format))), 1e-12
    )


def test_one_number_expanded_to_a_whole_row_gives_the_same() -> None:
    """Stride 0 in the last dimension, which the engines read contiguously, and in every other."""
    inputs = make_inputs(48)
    for change in (lambda x: x[..., :1].expand_as(x), lambda x: x.flatten()[0].expand_as(x)):
        expanded = inputs.map(change)
        plain = expanded.map(lambda x: x.clone(memory_format=torch.contiguous_format))
        for stage in ("sparse", "dense"):
            a, b = (dsa(*x, topk=3, stage=stage) for x in (expanded, plain))
            assert_close([a.out, a.loss], [b.out, b.loss], 1e-12)
            assert a.indices is None or torch.equal(a.indices, b.indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gather_pays", [0, 1 << 30], ids=["gathered", "in-place"])
@pytest.mark.parametrize("slab", [1, 500, 3000])
def test_any_chunk_size_gives_the_same(
    slab: int, gather_pays: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selection identically, values and gradients to rounding."""
    inputs = make_inputs(49, queries=23, keys=31, dtype=dtype)
    whole = everything(inputs.leaves())
    monkeypatch.setattr(engine, "slab_elements", slab)
    monkeypatch.setattr(engine, "GATHER_PAYS", gather_pays)
    cut = everything(inputs.leaves())
    assert torch.equal(cut[0], whole[0])
    assert_close(cut[1:], whole[1:], 1e-12 if dtype == torch.float64 else 1e-5)


def test_repetition_is_bitwise() -> None:
    inputs = make_inputs(50, queries=64, keys=64, dtype=torch.float32)
    for a, b in zip(everything(inputs.leaves()), everything(inputs.leaves()), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_threads_changes_no_selection() -> None:
    """Ties included: whole-number scores, of which many are equal."""
    index = make_inputs(54, queries=300, keys=300, dtype=torch.float32, largest_integer=2).index
    expected = select_tokens(*index, 20)
    torch.set_num_threads(3)
    try:
        assert torch.equal(select_tokens(*index, 20), expected)
    finally:
        torch.set_num_threads(1)


def test_inference_mode_gives_the_same() -> None:
    inputs = make_inputs(51)
    expected = dsa(*inputs, topk=3, stage="sparse")
    with torch.inference_mode():
        result = dsa(*inputs, topk=3, stage="sparse")
    assert torch.equal(result.out, expected.out) and torch.equal(result.indices, expected.indices)


# Wrong arguments.


def refusal(call: Callable[[], object], name: str) -> None:
    """`call` must raise a `UserError` (a ValueError) whose message is one line that names the argument."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and re.search(rf"\b{name}\b", message), message


X = make_inputs()
INDICES = torch.zeros(2, 5, 3, dtype=torch.int32)
LSE = torch.zeros(2, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("index_q", X.index_q[0]),
        ("index_q", X.index_q.int()),
        ("index_k", X.index_k[:, None]),
        ("index_k", X.index_k[..., :2]),
        ("index_k", X.index_k[:1]),
        ("index_k", X.index_k.to("meta")),
        ("index_w", X.index_w[..., None]),
        ("index_w", X.index_w[..., :1]),
        ("index_w", X.index_w[:, :4]),
        ("index_w", X.index_w.int()),
        ("index_w", X.index_w.to("meta")),
        ("first", torch.zeros(2, 4, dtype=torch.int32)),
        ("first", torch.zeros(2, 5)),
        ("last", torch.zeros(2, 5, dtype=torch.int64)),
        ("last", torch.zeros(5, dtype=torch.int32)),
        ("last", torch.zeros(2, 5, dtype=torch.int32, device="meta")),
        ("k", 0),
        ("k", -1),
        ("k", 2**31),
        ("k", 2**70),
        ("k", 3.0),
        ("k", True),
        ("index_k", torch.zeros(1, 1, 1, dtype=torch.float64).expand(2, 2**31, 3)),
    ],
)
def test_select_tokens_refuses(name: str, wrong: object) -> None:
    arguments = {"index_q": X.index_q, "index_k": X.index_k, "index_w": X.index_w, "k": 3}
    refusal(lambda: select_tokens(**{**arguments, name: wrong}), name)


WRONG_ATTENTION = [
    ("q", X.q[..., :0]),
    ("k", X.k[:, :1].expand(-1, 2**31, -1, -1)),
    ("q", X.q[0]),
    ("q", X.q.int()),
    ("k", X.k[..., 0]),
    ("k", X.k[..., :2]),
    ("k", X.k[:1]),
    ("k", X.k.float()),
    ("k", X.k.to("meta")),
    ("v", X.v[..., 0]),
    ("v", X.v[:, :6]),
    ("v", X.v[:, :, :1]),
    ("v", X.v.float()),
    ("v", X.v.to("meta")),
    ("sink", torch.zeros(5, dtype=torch.float64)),
    ("sink", torch.zeros(4, dtype=torch.int32)),
]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *WRONG_ATTENTION,
        ("indices", INDICES.long()),
        ("indices", INDICES.double()),
        ("indices", INDICES[0]),
        ("indices", INDICES[:, :4]),
        ("indices", INDICES[:1]),
        ("indices", INDICES.to("meta")),
    ],
)
def test_sparse_attention_refuses(name: str, wrong: Tensor) -> None:
    arguments = {"q": X.q, "k": X.k, "v": X.v, "indices": INDICES}
    refusal(lambda: sparse_attention(**{**arguments, name: wrong}), name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *WRONG_ATTENTION,
        ("first", torch.zeros(2, 4, dtype=torch.int32)),
        ("last", torch.zeros(2, 5)),
        ("last", torch.zeros(2, 5, dtype=torch.int32, device="meta")),
    ],
)
def test_dense_attention_refuses(name: str, wrong: Tensor) -> None:
    arguments = {"q": X.q, "k": X.k, "v": X.v}
    refusal(lambda: dense_attention(**{**arguments, name: wrong}), name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("index_q", X.index_q[:, :4]),
        ("index_k", X.index_k[..., :2]),
        ("index_k", X.index_k[:, :6]),
        ("index_w", X.index_w[..., :1]),
        ("q", X.q[..., 0]),
        ("q", X.q[:, :4]),
        ("k", X.k[..., :2]),
        ("k", X.k.to("meta")),
        ("lse", LSE[..., :3]),
        ("lse", LSE[0]),
        ("lse", LSE.int()),
        ("indices", INDICES.long()),
        ("indices", INDICES[:, :4]),
        ("first", torch.zeros(2, 4, dtype=torch.int32)),
    ],
)
def test_index_loss_refuses(name: str, wrong: Tensor) -> None:
    arguments = {"index_q": X.index_q, "index_k": X.index_k, "index_w": X.index_w, "q": X.q, "k": X.k, "lse": LSE}
    # A cut that two arguments could be blamed for may be told from either side.
    either = {"index_k": "(index_k|k)", "index_q": "(index_q|q|index_k|index_w)", "q": "(q|index_q|lse)"}.get(
        name, name
    )
    refusal(lambda: index_loss(**{**arguments, name: wrong}), either)


def test_heads_must_divide_into_groups() -> None:
    for call in (
        lambda: dense_attention(X.q[:, :, :3], X.k, X.v),
        lambda: sparse_attention(X.q[:, :, :3], X.k, X.v, INDICES),
        lambda: dsa(X.q[:, :, :3], *X[1:], topk=3, stage="sparse"),
    ):
        refusal(call, "(q|k)")


def test_more_queries_than_keys_need_their_spans() -> None:
    """The causal default puts the queries at the end of the keys: with more queries the first would have no place."""
    refusal(lambda: select_tokens(X.index_q, X.index_k[:, :4], X.index_w, 3), "last")
    refusal(lambda: dense_attention(X.q, X.k[:, :4], X.v[:, :4]), "last")


@pytest.mark.parametrize("stage", ["warm-up", "", None])
def test_dsa_refuses_an_unknown_stage(stage: object) -> None:
    refusal(lambda: dsa(*X, topk=3, stage=stage), "stage")


@pytest.mark.parametrize("stage", ["sparse", "frozen"])
@pytest.mark.parametrize("topk", [0, -5])
def test_dsa_refuses_to_keep_nothing(stage: str, topk: int) -> None:
    refusal(lambda: dsa(*X, topk=topk, stage=stage), "topk")


@pytest.mark.parametrize("stage", ["warmup", "sparse", "frozen"])
def test_dsa_needs_an_indexer_outside_the_dense_stage(stage: str) -> None:
    refusal(lambda: dsa(*X.attention, None, None, None, topk=3, stage=stage), "index_q")


@pytest.mark.parametrize("missing", ["index_q", "index_k", "index_w"])
@pytest.mark.parametrize("stage", STAGES)
def test_dsa_refuses_half_an_indexer(stage: str, missing: str) -> None:
    refusal(lambda: dsa(**{**X._asdict(), missing: None}, topk=3, stage=stage), missing)


def test_dsa_refuses_spans_of_another_length() -> None:
    for stage in STAGES:
        refusal(lambda stage=stage: dsa(*X, topk=3, stage=stage, first=span([0, 0])), "first")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("keys", [6, 9])
def test_dsa_refuses_index_keys_of_another_length(stage: str, keys: int) -> None:
    """The indexer would be causal over other positions than the attention, without anyone noticing."""
    index_k = torch.zeros(2, keys, 3, dtype=torch.float64)
    refusal(lambda: dsa(**{**X._asdict(), "index_k": index_k}, topk=3, stage=stage), "index_k")


@pytest.mark.parametrize("stage", STAGES)
def test_dsa_refuses_an_indexer_of_other_queries(stage: str) -> None:
    wrong = {"index_q": X.index_q[:, :4], "index_w": X.index_w[:, :4]}
    refusal(lambda: dsa(**{**X._asdict(), **wrong}, topk=3, stage=stage), "index_q")


@pytest.mark.parametrize("wrong", [7, -2])
def test_sparse_attention_refuses_an_index_that_is_no_key(wrong: int) -> None:
    refusal(lambda: sparse_attention(*X.attention, torch.full_like(INDICES, wrong)), "indices")


def test_no_queries_and_no_keys() -> None:
    """Empty inputs are answered by empty or zero outputs."""
    inputs = make_inputs(52, queries=0)
    assert select_tokens(*inputs.index, 3).shape == (2, 0, 3)
    assert dense_attention(*inputs.attention)[0].shape == (2, 0, 4, 2)
    assert dsa(*inputs, topk=3, stage="sparse").loss.item() == 0.0
    inputs = make_inputs(53, keys=0)
    nothing = {"last": torch.full((2, 5), -1, dtype=torch.int32)}
    for stage in STAGES:
        result = dsa(*inputs, topk=3, stage=stage, **nothing)
        assert not result.out.any() and (result.loss is None or result.loss.item() == 0.0)
