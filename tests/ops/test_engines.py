"""Which engine answers, and what the C++ one promises beyond the definition: the same bits on any number of threads,
the same answers from every instruction set, compiled graphs, and no silent substitute.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inazuma.errors import RunError, UserError
from inazuma.ops import cpu, dense_attention, dispatch, dsa, select_tokens, sparse_attention
from inazuma.ops.cpu import library
from inazuma.ops.dispatch import engine_for
from tests.ops import oracle
from tests.ops.cases import Inputs, gradients, make_inputs, span

needs_cpu = pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engines themselves."""


# Which engine.


@needs_cpu
def test_auto_takes_the_fastest_that_can() -> None:
    for dtype, expected in ((torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.float64, "reference")):
        assert engine_for(torch.zeros(1, dtype=dtype)) == expected
    assert engine_for(torch.zeros(1, dtype=torch.float16)) == "reference"
    assert engine_for(torch.zeros(1, device="meta")) == "reference"
    assert engine_for(torch.zeros(1), None, torch.zeros(0)) == "reference"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine: expected auto or one of .*, got 'fast'"):
        select_tokens(*make_inputs().index, 3, engine="fast")


@needs_cpu
def test_an_engine_asked_for_never_gives_way() -> None:
    inputs = make_inputs(dtype=torch.float64)
    for call in (
        lambda: select_tokens(*inputs.index, 3, engine="cpu"),
        lambda: dense_attention(*inputs.attention, engine="cpu"),
        lambda: dsa(*inputs, topk=3, stage="sparse", engine="cpu"),
    ):
        with pytest.raises(UserError, match=r"engine: 'cpu' cannot run: it has no torch\.float64"):
            call()


def test_a_missing_library_is_told_once_and_named_where_asked_for() -> None:
    inputs = make_inputs(dtype=torch.float32)
    why = "it was not built"
    with patch("inazuma.ops.cpu.MISSING", why), patch("inazuma.ops.cpu.operators.MISSING", why):
        dispatch._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="C\\+\\+ engine is missing .* reference") as told:
            dsa(*inputs, topk=3, stage="sparse")
            dsa(*inputs, topk=3, stage="sparse")
        assert len(told) == 1
        assert engine_for(*inputs) == "reference"
        with pytest.raises(UserError, match="it was not built"):
            select_tokens(*inputs.index, 3, engine="cpu")
    dispatch._warn_once.cache_clear()


# The same answers however the work is cut.


def everything(inputs: Inputs, topk: int, **options: Tensor | None) -> list[Tensor]:
    """Selection, values and gradients of the sparse and the dense stage by the C++ engine."""
    leaves = inputs.leaves()
    sparse = dsa(*leaves, topk=topk, stage="sparse", engine="cpu", **options)
    dense = dsa(*leaves, topk=topk, stage="dense", engine="cpu", **options)
    outputs = [sparse.out, sparse.loss, dense.out, dense.loss]
    return [sparse.indices, *outputs, *gradients(outputs, leaves)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@needs_cpu
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 300, "keys": 300, "heads": 8, "groups": 1, "width": 64, "value_width": 48, "index_width": 32},
        {"queries": 150, "keys": 333, "heads": 6, "groups": 3, "width": 20, "index_heads": 5},
        {"queries": 1, "keys": 20000, "heads": 2, "groups": 1},
    ],
    ids=["causal", "groups", "decoding"],
)
def test_the_number_of_threads_changes_no_bit(sizes: dict[str, int], dtype: torch.dtype) -> None:
    inputs = make_inputs(70, dtype=dtype, **sizes)
    results = []
    for threads in (1, 2, 8):
        torch.set_num_threads(threads)
        results.append(everything(inputs, 40))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def available() -> list[str]:
    if cpu.MISSING is not None:
        return []
    before = library.LIBRARY.inazuma_kernels()
    every = ("avx512bf16", "avx512vnni", "avx512", "avx2", "portable")
    names = [name for name in every if library.LIBRARY.inazuma_use_kernels(name.encode())]
    library.LIBRARY.inazuma_use_kernels(before)
    return names


@pytest.fixture(params=available())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = library.LIBRARY.inazuma_kernels()
    assert library.LIBRARY.inazuma_use_kernels(request.param.encode())
    yield request.param
    library.LIBRARY.inazuma_use_kernels(before)


SHAPES = {
    "tiles and their rests": {"queries": 37, "keys": 331, "heads": 8, "groups": 1, "width": 64, "value_width": 40},
    "many heads": {"queries": 9, "keys": 90, "heads": 36, "groups": 2, "width": 17, "index_heads": 19},
    "a group for each head": {"queries": 70, "keys": 70, "heads": 3, "groups": 3, "width": 33, "index_width": 35},
    "one query": {"queries": 1, "keys": 9000, "heads": 4, "groups": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_every_instruction_set_gives_the_definitions_answers(
    instruction_set: str, sizes: dict[str, int], dtype: torch.dtype
) -> None:
    """Whole numbers: the scores are exact, so the selection must be; values to rounding, gradients to that of dtype."""
    inputs = make_inputs(71, dtype=dtype, largest_integer=2, **sizes)
    inputs = inputs._replace(q=inputs.q / 8, index_w=inputs.index_w / 8)
    actual = everything(inputs, 50)
    leaves = inputs.map(torch.Tensor.double).leaves()
    sparse = dsa(*leaves, topk=50, stage="sparse", engine="reference")
    dense = dsa(*leaves, topk=50, stage="dense", engine="reference")
    outputs = [sparse.out, sparse.loss, dense.out, dense.loss]
    expected = [*outputs, *gradients(outputs, leaves)]
    assert torch.equal(actual[0], sparse.indices)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for a, e in zip(actual[1:], expected, strict=True):
        assert (a.double() - e).abs().max() <= tolerance * e.abs().max()


def test_every_instruction_set_knows_what_is_not_finite(instruction_set: str) -> None:
    """NaN and infinities, of the products and of the weights, come after every finite score, and in their order."""
    generator = torch.Generator().manual_seed(72)
    index_q, index_k = torch.ones(1, 1, 1, 1), torch.randn(1, 3000, 1, generator=generator)
    odd = torch.randperm(3000, generator=generator)[:300]
    index_k[0, odd] = torch.tensor([math.nan, math.inf, 3e38, -math.inf] * 75)[:, None]
    index_w = torch.full((1, 1, 1), 2.0)
    scores = (index_k.relu() * 2).view(1, 1, -1)
    finite = scores.isfinite()
    for k in (5, 2700, 2800, 3000):
        seen = torch.ones(1, 1, 3000, dtype=torch.bool)
        expected = oracle.select(scores.where(finite, -math.inf).double(), seen, k)
        assert torch.equal(select_tokens(index_q, index_k, index_w, k, engine="cpu"), expected)
        if k <= int(finite.sum()):
            assert finite[0, 0, expected[0, 0].long()].all()


CHANGES = {
    "nothing": lambda x: x,
    "few distinct keys, so that most scores tie": lambda x: x._replace(index_k=x.index_k[:, torch.arange(4000) % 40]),
    "one enormous key": lambda x: x._replace(index_k=x.index_k.index_fill(1, torch.tensor(17), 1e6)),
    "one key of NaN": lambda x: x._replace(index_k=x.index_k.index_fill(1, torch.tensor(5), math.nan)),
    "nearly denormal": lambda x: x._replace(index_q=x.index_q * 1e-30, index_w=x.index_w * 1e-10),
    "nearly infinite": lambda x: x._replace(index_q=x.index_q * 1e18, index_w=x.index_w * 1e18),
    "keys of all magnitudes": lambda x: x._replace(index_k=x.index_k * 10 ** x.k[..., 0, :1]),
}


@pytest.mark.skipif("avx512vnni" not in available(), reason="this machine does not multiply pairs of int16")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(
    "sizes",
    [
        {"index_heads": 4, "index_width": 32},
        {"index_heads": 1, "index_width": 1},
        {"index_heads": 11, "index_width": 35},
    ],
    ids=["usual", "least", "odd"],
)
@pytest.mark.parametrize("k", [1, 512])
def test_rough_scores_rule_out_no_key_of_the_selection(change: Callable, sizes: dict[str, int], k: int) -> None:
    """Where keys are first scored in whole numbers, the selection is that of float32 scores, whatever is rough."""
    index = change(make_inputs(79, queries=130, keys=4000, dtype=torch.float32, **sizes)).index
    before = library.LIBRARY.inazuma_kernels()
    selections = []
    for name in (b"avx512", b"avx512vnni"):
        assert library.LIBRARY.inazuma_use_kernels(name)
        selections.append(select_tokens(*index, k, engine="cpu"))
    library.LIBRARY.inazuma_use_kernels(before)
    assert torch.equal(*selections)


@needs_cpu
def test_keys_between_spans_may_hold_anything() -> None:
    """Queries that are worked on together see keys on either side of some that nobody reads."""
    inputs = make_inputs(78, batch=1, queries=4, keys=12, heads=2, dtype=torch.float32)
    first, last = span([0, 9, 0, 8]), span([3, 11, 2, 10])
    dirty = inputs.map(torch.Tensor.clone)
    for x in (dirty.k, dirty.v, dirty.index_k):
        x[:, 4:8] = math.nan
    clean, garbage = (everything(x, 2, first=first, last=last) for x in (inputs, dirty))
    assert all(torch.equal(a, b) for a, b in zip(clean, garbage, strict=True))


few = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@needs_cpu
@few
@given(st.data())
def test_any_shape_span_tie_and_dtype_is_as_defined(data: st.DataObject) -> None:
    """Bigger than the oracle can bear: the reference in float64 is the witness, which the oracle has judged."""
    draw = data.draw
    batch, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 70)), draw(st.integers(1, 400))
    groups = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    inputs = make_inputs(
        draw(st.integers(0, 2**16)),
        batch=batch,
        queries=queries,
        keys=keys,
        groups=groups,
        heads=groups * draw(st.integers(1, 9)),
        width=draw(st.integers(1, 40)),
        value_width=draw(st.integers(1, 40)),
        index_heads=draw(st.integers(1, 9)),
        index_width=draw(st.integers(1, 40)),
        dtype=dtype,
        largest_integer=draw(st.integers(0, 2)),
    )
    inputs = inputs._replace(q=inputs.q / 16, index_w=inputs.index_w / 16)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ends = lambda: torch.randint(-2, keys + 2, (batch, queries), generator=generator, dtype=torch.int32)  # noqa: E731
    first = ends() if draw(st.booleans()) else None
    last = ends() if queries > keys or draw(st.booleans()) else None
    topk = draw(st.integers(1, keys + 3))
    actual = everything(inputs, topk, first=first, last=last)
    leaves = inputs.map(torch.Tensor.double).leaves()
    spans = {"first": first, "last": last, "engine": "reference"}
    sparse, dense = (dsa(*leaves, topk=topk, stage=stage, **spans) for stage in ("sparse", "dense"))
    assert torch.equal(actual[0], sparse.indices)
    outputs = [sparse.out, sparse.loss, dense.out, dense.loss]
    tolerance = 5e-5 if dtype == torch.float32 else 3e-2
    for a, e in zip(actual[1:], [*outputs, *gradients(outputs, leaves)], strict=True):
        assert (a.double() - e).abs().max() <= tolerance * max(1.0, float(e.detach().abs().max()))


# Its surroundings.


@needs_cpu
def test_a_compiled_graph_is_whole_and_gives_the_same() -> None:
    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        sparse = dsa(*inputs, topk=9, stage="sparse", engine="cpu")
        return sparse.out, sparse.loss, sparse.indices

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    inputs = make_inputs(73, queries=30, keys=30, dtype=torch.float32)
    results = []
    for run in (step, compiled):
        leaves = inputs.leaves()
        outputs = run(*leaves)
        results.append([*outputs, *gradients(outputs[:2], leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_cpu
def test_the_operators_are_registered_as_pytorch_wants_them() -> None:
    inputs = make_inputs(74, dtype=torch.float32).leaves()
    ends = torch.zeros(2, 5, dtype=torch.int32), torch.full((2, 5), 6, dtype=torch.int32)
    indices = select_tokens(*inputs.index, 3)
    lse = torch.zeros(2, 5, 4)
    checked = "test_schema", "test_autograd_registration", "test_faketensor"
    for operator, arguments in (
        (torch.ops.inazuma.cpu_select_tokens, (*inputs.index, 3, *ends)),
        (torch.ops.inazuma.cpu_attention, (*inputs.attention, torch.zeros(4), indices, None, None, 0.5)),
        (torch.ops.inazuma.cpu_attention, (*inputs.attention, None, None, *ends, 0.5)),
        (
            torch.ops.inazuma.cpu_index_loss,
            (*inputs.index, inputs.q.detach(), inputs.k.detach(), lse, None, *ends, 0.5, True),
        ),
    ):
        torch.library.opcheck(operator, arguments, test_utils=checked)


@needs_cpu
def test_several_python_threads_may_call_at_once() -> None:
    inputs = make_inputs(75, queries=200, keys=200, dtype=torch.float32)
    expected = everything(inputs, 20)
    torch.set_num_threads(2)
    results: list[list[Tensor]] = []
    callers = [threading.Thread(target=lambda: results.append(everything(inputs, 20))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    torch.set_num_threads(1)
    assert len(results) == 4
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


@needs_cpu
@pytest.mark.usefixtures("threads")
def test_a_forked_child_can_call_too() -> None:
    index = make_inputs(76, queries=200, keys=200, dtype=torch.float32).index
    torch.set_num_threads(2)
    expected = select_tokens(*index, 20, engine="cpu")
    child = os.fork()
    if child == 0:
        os._exit(not torch.equal(select_tokens(*index, 20, engine="cpu"), expected))
    assert os.waitpid(child, 0)[1] == 0


@needs_cpu
def test_keys_are_read_where_they_lie() -> None:
    """Absorbed attention passes a view of the keys as values: its rows are longer than it is wide, and not copied."""
    inputs = make_inputs(77, groups=1, width=24, dtype=torch.float32)
    wide = torch.randn(2, 9, 1, 24, generator=torch.Generator().manual_seed(0))
    k, indices = wide[:, 1:8], torch.tensor([0, 3, -1, 6], dtype=torch.int32).expand(2, 5, 4)
    out, lse = sparse_attention(inputs.q, k, k[..., 5:13], indices, engine="cpu")
    expected = sparse_attention(inputs.q, k.clone(), k[..., 5:13].clone(), indices, engine="cpu")
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


@pytest.mark.parametrize(
    "engine", [name for name, module in dispatch.ENGINES.items() if module.obstacle(torch.zeros(1)) is None]
)
def test_scores_that_are_not_finite_are_counted_under_debug(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key 3 of 8 is seen by the five queries from it on; without the flag they prefer every other key."""
    index_q, index_k, index_w = make_inputs(batch=1, queries=8, keys=8, dtype=torch.float32).index
    index_k = index_k.clone()
    index_k[0, 3] = math.nan
    chosen = select_tokens(index_q, index_k, index_w, 2, engine=engine)
    assert 3 not in chosen[0, 3:]
    monkeypatch.setattr(dispatch, "debug", True)
    with pytest.raises(RunError, match="select_tokens: 5 scores of visible keys are not finite"):
        select_tokens(index_q, index_k, index_w, 2, engine=engine)
    index_k[0, 3] = 0
    select_tokens(index_q, index_k, index_w, 2, engine=engine)
