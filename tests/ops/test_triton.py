"""What the Triton engine promises beyond the operators' tests: when it answers, half precision, shapes that straddle
its tiles, the same bits however its slabs are cut, and scores that are not finite. All in Triton's interpreter.
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from inazuma.errors import UserError
from inazuma.ops import dense_attention, dispatch, dsa, select_tokens, sparse_attention, triton
from inazuma.ops.dispatch import engine_for
from inazuma.ops.triton import tiles
from tests.ops import oracle
from tests.ops.cases import Inputs, gradients, make_inputs, span

needs_triton = pytest.mark.skipif(triton.obstacle() is not None, reason=str(triton.obstacle()))


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """These tests name their engines themselves."""


# When it answers.


def test_auto_does_not_take_the_interpreter() -> None:
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        assert engine_for(torch.zeros(1, dtype=dtype)) != "triton"


def test_auto_takes_nvidias_gpus_and_amds_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():  # a tensor on a GPU that is not there
        x = torch.zeros(1, device="cuda")
        assert engine_for(x) == "triton"
        monkeypatch.setattr(triton, "installed", lambda: False)
        dispatch._warn_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="triton is not installed; the slow reference engine"):
            assert engine_for(x) == "reference"
        monkeypatch.undo()
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert engine_for(x) == "reference"
        assert engine_for(x, engine="triton") == "triton"


@needs_triton
def test_it_says_what_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, why in (
        (torch.zeros(1, dtype=torch.float64), r"it has no torch\.float64"),
        (torch.zeros(1, dtype=torch.bfloat16), "interpreter has no products of bfloat16"),
        (torch.zeros(1, 1, 1, 600, dtype=torch.float16), "heads of width 600 .*576 do"),
        (torch.zeros(0), "empty"),
        (torch.zeros(1, device="meta"), "a tensor is on meta"),
    ):
        with pytest.raises(UserError, match=f"engine: 'triton' cannot run: .*{why}"):
            engine_for(tensor, engine="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UserError, match="a tensor is on cpu, and Triton's interpreter is off"):
        engine_for(torch.zeros(1), engine="triton")


def test_without_triton_nothing_is_lost() -> None:
    """An import that finds no triton: auto goes on, and the name is refused with the reason."""
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
sys.modules["triton"] = None
import torch
from inazuma.ops import select_tokens
x = torch.ones(1, 2, 1, 1)
assert select_tokens(x, x[:, :, 0], x[:, :, 0], 1).tolist() == [[[0], [0]]]
try:
    select_tokens(x, x[:, :, 0], x[:, :, 0], 1, engine="triton")
except ValueError as error:
    assert "the package triton is not installed" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_the_operators_does_not_import_triton() -> None:
    program = """
import sys
import torch
before = "triton" in sys.modules
import inazuma.ops
assert ("triton" in sys.modules) == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# Tiles.


def test_a_width_is_split_into_powers_of_two() -> None:
    expected = {1: (16, 0), 16: (16, 0), 17: (16, 16), 24: (16, 16), 64: (64, 0), 96: (64, 32), 576: (512, 64)}
    assert {width: tiles.split(width) for width in expected} == expected
    assert tiles.split(700) == (512, 256)


@pytest.mark.parametrize("shared", [65_536, 101_376, 166_912, 232_448])
@pytest.mark.parametrize("warp", [32, 64])
def test_rows_cover_the_heads_of_a_query_and_no_tile_is_smaller_than_tensor_cores_take(shared: int, warp: int) -> None:
    gpu = tiles.Limits(shared, warp)
    for heads, (key, value) in itertools.product((1, 8, 16, 20, 128), ((576, 0), (576, 512), (128, 128))):
        widths = tiles.Widths(key, value, heads, exact=False)
        sparse = tiles.forward(gpu, widths, True), tiles.backward_queries(gpu, widths, True)
        for tile in (*sparse, tiles.backward_keys(gpu, widths, True), tiles.visible_target(gpu, widths)):
            for side in (tile.rows, tile.keys):
                assert side >= 16 and side & (side - 1) == 0
        for tile in (*sparse, tiles.kept_target(gpu, widths)):
            assert tile.rows < 2 * max(16, heads)


# Values and gradients.


def everything(inputs: Inputs, topk: int, engine: str, absorbed: bool = False, **spans: Tensor) -> list[Tensor]:
    """Selection, values and gradients of the sparse and the dense stage."""
    leaves = inputs.leaves()
    if absorbed:
        leaves = leaves._replace(v=leaves.k[..., : inputs.v.shape[-1]])
    sparse = dsa(*leaves, topk=topk, stage="sparse", engine=engine, **spans)
    dense = dsa(*leaves, topk=topk, stage="dense", engine=engine, **spans)
    outputs = [sparse.out, sparse.loss, dense.out, dense.loss]
    return [sparse.indices, *outputs, *gradients(outputs, leaves)]


SHAPES = {
    "two tiles of heads": {"queries": 3, "keys": 37, "heads": 35, "groups": 1, "width": 24, "value_width": 16},
    "groups and odd widths": {"queries": 5, "keys": 33, "heads": 6, "groups": 3, "width": 33, "value_width": 17},
    "several tiles of queries": {"batch": 1, "queries": 19, "keys": 40, "heads": 2, "groups": 1},
}


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_gradients_are_the_definitions(sizes: dict[str, int], dtype: torch.dtype) -> None:
    """Whole numbers: the scores are exact, so the selection must be; the rest to the rounding of dtype."""
    inputs = make_inputs(81, dtype=dtype, largest_integer=2, **sizes)
    inputs = inputs._replace(q=inputs.q / 8, index_w=inputs.index_w / 8)
    assert_same(everything(inputs, 20, "triton"), everything(inputs.map(Tensor.double), 20, "reference"), dtype)


def assert_same(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    assert torch.equal(actual[0], expected[0])
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    for a, e in zip(actual[1:], expected[1:], strict=True):
        assert (a.double() - e).abs().max() <= tolerance * max(1e-3, float(e.detach().abs().max()))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_absorbed_attention_reads_its_values_in_the_keys(dtype: torch.dtype) -> None:
    """Width 24 = 16 + 8 with values of width 16, as 576 = 512 + 64 with 512: the keys' gradient has both parts."""
    inputs = make_inputs(82, dtype=dtype, queries=3, keys=21, heads=5, groups=1, width=24, value_width=16)
    q, k, indices = inputs.q, inputs.k, torch.tensor([0, 3, -1, 20, 7], dtype=torch.int32).expand(2, 3, 5)
    results = []
    for cast, engine in ((Tensor.clone, "triton"), (Tensor.double, "reference")):
        leaves = [cast(x).requires_grad_() for x in (q, k)]
        v = leaves[1][..., :16]
        outputs = [
            *sparse_attention(*leaves, v, indices, engine=engine),
            *dense_attention(*leaves, v, engine=engine),
        ]
        results.append([indices, *outputs, *gradients(outputs, leaves)])
    assert_same(*results, dtype)


@needs_triton
def test_a_slab_of_any_size_gives_the_same() -> None:
    """Cut to one query at a time, a key still sums its pairs in the order of the queries: not a bit changes."""
    inputs = make_inputs(83, dtype=torch.float32, batch=1, queries=6, keys=13, heads=3, groups=1)
    results = []
    for size in (1, 4 * 13 * 3, 1 << 28):
        with patch("inazuma.ops.triton.launch.SLAB_BYTES", size):
            leaves = inputs.leaves()
            result = dsa(*leaves, topk=6, stage="sparse", engine="triton")
            dense = dsa(*leaves, topk=6, stage="warmup", engine="triton")
            sparse_bits = [result.indices, result.out, result.loss, *gradients([result.out, result.loss], leaves)]
            results.append((sparse_bits, gradients([dense.loss], leaves.index)))
    for sparse_bits, dense_gradients in results[:-1]:
        assert all(torch.equal(a, b) for a, b in zip(sparse_bits, results[-1][0], strict=True))
        for a, b in zip(dense_gradients, results[-1][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@needs_triton
@pytest.mark.parametrize("part", ["first columns", "detached", "last columns", "fewer"])
def test_keys_are_owed_only_what_their_own_columns_are(part: str) -> None:
    """Values in the keys' memory whose gradient is, or is not, a part of theirs."""
    inputs = make_inputs(87, dtype=torch.float32, keys=21, groups=1, width=24)
    views = {
        "first columns": lambda k: k[..., :16],
        "detached": lambda k: k.detach()[..., :16],
        "last columns": lambda k: k[..., 8:],
        "fewer": lambda k: k[..., :9],
    }
    kept = select_tokens(*inputs.index, 6)
    found = []
    for engine, q, k in (("triton", inputs.q, inputs.k), ("reference", inputs.q.double(), inputs.k.double())):
        q, k = (x.clone().requires_grad_() for x in (q, k))
        keys = k * 1.0  # no leaf: what the caller's graph makes of it comes before
        outputs = [sparse_attention(q, keys, views[part](keys), kept, engine=engine)[0]]
        outputs.append(dense_attention(q, k, views[part](k), engine=engine)[0])
        found.append(torch.autograd.grad([x.square().sum() for x in outputs], (q, k)))
    for ours, expected in zip(*found, strict=True):
        assert (ours.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_without_determinism_gradients_are_the_definitions_and_no_map_is_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own demand for determinism comes before the permission."""
    inputs = make_inputs(85, dtype=dtype, keys=21, groups=1, width=24, value_width=16, largest_integer=2)
    inputs = inputs._replace(q=inputs.q / 8, index_w=inputs.index_w / 8)
    expected = everything(inputs.map(Tensor.double), 6, "reference")
    everything(inputs, 6, "triton")  # the modules exist once they have been used
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "deterministic", False)
        for module in ("operators", "loss_operator"):
            patch.setattr(f"inazuma.ops.triton.{module}.pairs_of", None)
        assert_same(everything(inputs, 6, "triton"), expected, dtype)
        torch.use_deterministic_algorithms(True)
        try:
            with pytest.raises(TypeError, match="'NoneType' object is not callable"):
                everything(inputs, 6, "triton")
        finally:
            torch.use_deterministic_algorithms(False)


@needs_triton
def test_keys_between_spans_may_hold_anything() -> None:
    """Queries that share a tile see keys on either side of some that nobody reads."""
    inputs = make_inputs(78, batch=1, queries=4, keys=12, heads=2, dtype=torch.float32)
    first, last = span([0, 9, 0, 8]), span([3, 11, 2, 10])
    dirty = inputs.map(Tensor.clone)
    for x in (dirty.k, dirty.v, dirty.index_k):
        x[:, 4:8] = math.nan
    clean, garbage = (everything(x, 2, "triton", first=first, last=last) for x in (inputs, dirty))
    assert all(torch.equal(a, b) for a, b in zip(clean, garbage, strict=True))


@needs_triton
def test_a_selection_without_places_reads_nothing() -> None:
    inputs = make_inputs(84, dtype=torch.float32).leaves()
    nothing = torch.empty(2, 5, 0, dtype=torch.int32)
    result = dsa(*inputs, topk=1, stage="sparse", indices=nothing, engine="triton")
    assert not result.out.any() and result.loss == 0
    assert not any(x.any() for x in gradients([result.out, result.loss], inputs))


# Selection.


@needs_triton
@pytest.mark.parametrize("k", [3, 500])
def test_a_sample_of_a_long_row_changes_nothing(k: int) -> None:
    """Scores of which a sample tells much (all different), little (rising: the best are together), the wrong (the best
    lie between its steps) and nothing (ties), beside a row too short for a sample."""
    S = 4500
    generator = torch.Generator().manual_seed(73)
    between = torch.where(torch.arange(S) % 2 > 0, 2.0, 1.0) + torch.rand(S, generator=generator) / 4
    rows = [
        torch.randn(S, generator=generator),
        torch.arange(S).float(),
        between,
        torch.ones(S),
        torch.randint(0, 3, (S,), generator=generator).float(),
    ]
    scores = torch.stack([*rows, rows[0]])
    last = torch.tensor([S - 1] * 5 + [2000])
    first = torch.tensor([0, 7, 0, 0, 0, 0])
    # One index head, and a query for each row that picks its scores.
    index_q = torch.eye(6)[None, :, None, :].repeat(1, 1, 2, 1)
    index_q[:, :, 1] *= -1
    index_k = scores.T[None].contiguous()
    index_w = torch.tensor([1.0, -1.0]).expand(1, 6, 2).contiguous()
    spans = {"first": first.int()[None], "last": last.int()[None]}
    ours = select_tokens(index_q, index_k, index_w, k, engine="triton", **spans)
    key = torch.arange(S)
    visible = (key >= first[:, None]) & (key <= last[:, None])
    assert tiles.candidates(S, k) > 0
    assert torch.equal(ours, oracle.select(scores.double()[None], visible[None], k))


@needs_triton
def test_what_is_not_finite_is_selected_last() -> None:
    """NaN and infinities, of the products and of the weights, come after every finite score, and in their order."""
    generator = torch.Generator().manual_seed(72)
    index_q, index_k = torch.ones(1, 1, 1, 1), torch.randn(1, 300, 1, generator=generator)
    odd = torch.randperm(300, generator=generator)[:40]
    index_k[0, odd] = torch.tensor([math.nan, math.inf, 3e38, -math.inf] * 10)[:, None]
    index_w = torch.full((1, 1, 1), 2.0)
    scores = (index_k.relu() * 2).view(1, 1, -1)
    finite = scores.isfinite()
    for k in (5, 271, 285, 300):
        expected = oracle.select(scores.where(finite, -math.inf).double(), torch.ones(1, 1, 300, dtype=torch.bool), k)
        assert torch.equal(select_tokens(index_q, index_k, index_w, k, engine="triton"), expected)


@needs_triton
def test_the_operators_are_registered_as_pytorch_wants_them() -> None:
    inputs = make_inputs(74, dtype=torch.float32).leaves()
    ends = torch.zeros(2, 5, dtype=torch.int32), torch.full((2, 5), 6, dtype=torch.int32)
    indices = select_tokens(*inputs.index, 3, engine="triton")
    teacher = inputs.q.detach(), inputs.k.detach(), torch.zeros(2, 5, 4)
    dsa(*inputs, topk=3, stage="sparse", engine="triton")  # the operators exist once they have been used
    operators = torch.ops.inazuma
    for operator, arguments in (
        (operators.triton_select_tokens, (*inputs.index, 3, *ends)),
        (operators.triton_attention, (*inputs.attention, torch.zeros(4), indices, None, None, 0.5, False)),
        (operators.triton_index_loss, (*inputs.index, *teacher, None, *ends, 0.5, True, False)),
    ):
        checked = "test_schema", "test_autograd_registration", "test_faketensor"
        torch.library.opcheck(operator, arguments, test_utils=checked)
