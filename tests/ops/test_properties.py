"""Random shapes, spans and ties: the operators are the oracle, for every chunk size."""

from __future__ import annotations

from typing import NamedTuple
from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inazuma.ops import dense_attention, dsa, index_loss, select_tokens, sparse_attention
from inazuma.ops import reference as engine
from tests.ops import oracle
from tests.ops.cases import CHUNKS, Inputs, assert_close, gradients, make_inputs

few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


class Case(NamedTuple):
    inputs: Inputs
    first: Tensor | None
    last: Tensor | None
    topk: int
    chunks: dict[str, int]

    @property
    def spans(self) -> dict[str, Tensor | None]:
        return {"first": self.first, "last": self.last}

    def visible(self) -> Tensor:
        return oracle.visible(*self.inputs.q.shape[:2], self.inputs.k.shape[1], self.first, self.last)

    def select(self) -> Tensor:
        return oracle.select(oracle.index_scores(*self.inputs.index), self.visible(), self.topk)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype | None = None) -> Case:
    """Small whole numbers, so that scores are exact in every dtype and tie often; spans in and around the keys."""
    batch, queries, keys = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 8))
    groups = draw(st.integers(1, 3))
    inputs = make_inputs(
        draw(st.integers(0, 2**16)),
        batch=batch,
        queries=queries,
        keys=keys,
        groups=groups,
        heads=groups * draw(st.integers(1, 3)),
        width=draw(st.integers(1, 3)),
        value_width=draw(st.integers(1, 3)),
        index_heads=draw(st.integers(1, 3)),
        index_width=draw(st.integers(1, 3)),
        dtype=dtype,
        largest_integer=draw(st.integers(0, 3)),
    )
    ends = st.lists(st.integers(-2, keys + 1), min_size=batch * queries, max_size=batch * queries)
    end = ends.map(lambda values: torch.tensor(values, dtype=torch.int32).view(batch, queries))
    # With more queries than keys there is no causal default for `last`.
    last = draw(end if queries > keys else st.none() | end)
    return Case(
        inputs,
        draw(st.none() | end),
        last,
        draw(st.integers(1, keys + 3)),
        draw(st.sampled_from(list(CHUNKS.values()))),
    )


@few
@given(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]).flatmap(cases))
def test_selection_is_the_oracles(case: Case) -> None:
    with patch.multiple(engine, **case.chunks):
        assert torch.equal(select_tokens(*case.inputs.index, case.topk, **case.spans), case.select())


@few
@given(cases(), st.booleans(), st.sampled_from([None, 0.3]))
def test_attention_is_the_oracles(case: Case, with_sink: bool, scale: float | None) -> None:
    leaves, indices = case.inputs.leaves(), case.select()
    heads = leaves.q.shape[2]
    sink = torch.linspace(-1, 2, heads, dtype=leaves.q.dtype).requires_grad_() if with_sink else None
    sources = [*leaves.attention, *([sink] if with_sink else [])]
    with patch.multiple(engine, **case.chunks):
        for result, keys in (
            (
                sparse_attention(*leaves.attention, indices, scale=scale, sink=sink),
                oracle.chosen(indices, leaves.k.shape[1]),
            ),
            (dense_attention(*leaves.attention, **case.spans, scale=scale, sink=sink), case.visible()),
        ):
            expected = oracle.attention(*leaves.attention, keys, scale, sink)
            assert_close(result, expected)
            if keys.any() or with_sink:
                assert_close(gradients(result, sources), gradients(expected, sources))


@few
@given(cases())
def test_loss_is_the_oracles(case: Case) -> None:
    leaves, indices = case.inputs.leaves(), case.select()
    q, k, v = case.inputs.attention
    with patch.multiple(engine, **case.chunks):
        for sets, keys in (({"indices": indices}, oracle.chosen(indices, k.shape[1])), (case.spans, case.visible())):
            _, lse = oracle.attention(q, k, v, keys)
            loss = index_loss(*leaves.index, q, k, lse, **sets)
            expected = oracle.index_loss(*leaves.index, q, k, keys)
            assert_close(loss, expected)
            assert_close(gradients([loss], leaves.index), gradients([expected], leaves.index))
            assert loss > -1e-6  # a divergence is never negative


@few
@given(cases())
def test_keeping_every_key_is_the_dense_stage(case: Case) -> None:
    """Sparse attention with k ≥ S, and all that comes of it, is dense attention."""
    keys = case.inputs.k.shape[1]
    results = []
    with patch.multiple(engine, **case.chunks):
        for stage in ("sparse", "dense"):
            leaves = case.inputs.leaves()
            out, loss, _ = dsa(*leaves, topk=keys, stage=stage, **case.spans)
            results.append([out, loss, *gradients([out, loss], leaves)])
    assert_close(*results)


@few
@given(cases(), st.integers(0, 2**16))
def test_selection_does_not_depend_on_the_keys_that_it_left_out(case: Case, seed: int) -> None:
    """Keys that no query selected can be anything: out, lse and loss are the same."""
    indices = case.select()
    unused = ~oracle.chosen(indices, case.inputs.k.shape[1]).any(dim=1)
    generator = torch.Generator().manual_seed(seed)
    changed = list(case.inputs)
    for i in (1, 2, 4):
        noise = torch.randn(changed[i].shape, generator=generator, dtype=changed[i].dtype)
        kept = unused.view(*unused.shape, *[1] * (noise.dim() - 2))
        changed[i] = torch.where(kept, noise, changed[i])
    results = []
    with patch.multiple(engine, **case.chunks):
        for inputs in (case.inputs, Inputs(*changed)):
            out, lse = sparse_attention(*inputs.attention, indices)
            results.append([out, lse, index_loss(*inputs.index, inputs.q, inputs.k, lse, indices=indices)])
    assert_close(*results)
