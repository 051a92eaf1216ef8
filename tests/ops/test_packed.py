"""Packed linear layers and the operators between them: their values, and that a row depends on nothing but itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model.layers import Rotation
from inazuma.ops import cpu, packed
from inazuma.ops.cpu import library
from inazuma.ops.packed import KINDS, Kind, add_rms_norm, pack, rms_norm, rotate, silu_mul
from tests.model.tiny import tiny
from tests.ops.test_engines import available

SHAPES = [(1, 1), (33, 7), (100, 63), (48, 96), (31, 130), (97, 1031), (3, 70001)]
"""Outputs and inputs: whole panels and groups, and every kind of rest."""


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Not operators of an engine."""


@pytest.fixture(params=available() or [None])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param is None:
        pytest.skip(cpu.MISSING)
    before = library.LIBRARY.inazuma_kernels()
    assert library.LIBRARY.inazuma_use_kernels(request.param.encode())
    yield request.param
    library.LIBRARY.inazuma_use_kernels(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(N: int, K: int) -> tuple[Tensor, Tensor]:
    """Weights of which each output has its own size, and one has none; a bias."""
    weight = draw(N, K, seed=N) * torch.logspace(-1, 1, N)[:, None]
    weight[N // 2] *= N == 1
    return weight, draw(N, seed=K)


def integers(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of float32 by their largest magnitude: whole numbers to 127, and the scales, `[rows,1]`."""
    most = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-35))
    return np.rint(x * (np.float32(127) / most)).astype(np.float64), most.astype(np.float64) / 127


def brain(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def expected(x: Tensor, weight: Tensor, bias: Tensor, kind: Kind) -> np.ndarray:
    """The layer in float64, of the numbers that this kind keeps."""
    x, w, b = x.numpy(), weight.numpy(), bias.double().numpy()
    if kind == "float32":
        return x.astype(np.float64) @ w.T.astype(np.float64) + b
    if kind == "bfloat16":
        return brain(x).astype(np.float64) @ brain(w).T.astype(np.float64) + b
    inputs = np.empty(x.shape)
    shared = 128 if kind == "int8" else 32
    for start in range(0, x.shape[1], shared):
        inputs[:, start : start + shared] = np.multiply(*integers(x[:, start : start + shared]))
    if kind == "int8":
        return inputs @ np.multiply(*integers(w)).T + b
    kept = np.empty(w.shape)
    for start in range(0, w.shape[1], 32):
        group = w[:, start : start + 32]
        zero = brain(group.min(1, keepdims=True))
        step = brain(np.maximum((group.max(1, keepdims=True) - zero) / np.float32(15), np.float32(1e-30)))
        kept[:, start : start + 32] = np.clip(np.rint((group - zero) / step), 0, 15) * step.astype(np.float64) + zero
    return inputs @ kept.T + b


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_against_float64(instruction_set: str, kind: Kind, shape: tuple[int, int]) -> None:
    weight, bias = layer(*shape)
    found = pack(weight, bias, kind)
    assert (found.outputs, found.inputs) == shape
    for rows in (1, 2, 13, 40):
        x = draw(rows, shape[1], seed=rows)
        y, wanted = found(x).double().numpy(), expected(x, weight, bias, kind)
        # Beside float32's rounding of sums, each output by the size of what is added up.
        size = np.abs(x.double().numpy()) @ np.abs(weight.double().numpy()).T + np.abs(bias.numpy())
        assert (np.abs(y - wanted) / size).max() < 2e-6
        without = pack(weight, None, kind)(x).double().numpy()
        assert (np.abs(without - (wanted - bias.double().numpy())) / size).max() < 2e-6


@pytest.mark.parametrize("shape", [(70, 100), (33, 257), (600, 320)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_nothing_but_itself(
    instruction_set: str, kind: Kind, shape: tuple[int, int], two_threads: None
) -> None:
    found = pack(*layer(*shape), kind)
    x = draw(200, shape[1]) * torch.logspace(-2, 2, 200)[:, None]
    torch.set_num_threads(1)
    alone = torch.cat([found(row[None]) for row in x])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 65, 200):
            for start in {0, (200 - rows) // 2, 200 - rows}:
                out = torch.full((rows, shape[0]), torch.nan)
                assert torch.equal(found(x[start : start + rows], out=out), alone[start : start + rows])
                assert torch.equal(out, alone[start : start + rows])
    assert torch.equal(found(x.view(5, 2, 20, -1)), alone.view(5, 2, 20, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_and_more_rows_than_the_cache_takes(kind: Kind, two_threads: None) -> None:
    found = pack(*layer(200, 1536), kind)
    x = draw(1100, 1536)
    y = found(x)
    torch.set_num_threads(7)
    assert torch.equal(found(x), y)
    torch.set_num_threads(1)
    assert torch.equal(torch.cat([found(part) for part in x.split(37)]), y)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_huge_tiny_zero_or_none(instruction_set: str, kind: Kind) -> None:
    weight, bias = layer(40, 70)
    plain, biased = pack(weight, None, kind), pack(weight, bias, kind)
    x = draw(5, 70)
    for power in (2.0**80, 2.0**-80):
        assert torch.equal(plain(x * power), plain(x) * power)
    assert torch.equal(plain(torch.full((2, 70), 1e-40)).abs() < 1e-33, torch.ones(2, 40, dtype=torch.bool))
    assert torch.equal(biased(torch.zeros(3, 70)), bias.expand(3, 40))
    assert torch.equal(pack(torch.zeros(40, 70), bias, kind)(x), bias.expand(5, 40))
    assert biased(torch.empty(0, 70)).shape == (0, 40)
    for wrong in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 37, 69):
            bad = x.clone()
            bad[2, column] = wrong
            y = biased(bad)
            assert torch.equal(y[[0, 1, 3, 4]], biased(x)[[0, 1, 3, 4]])
            assert not y[2].isfinite().any()
            if kind in ("int8", "int4"):
                assert y[2].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_library_the_definition_answers_and_says_so(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = layer(50, 70)
    x = draw(9, 70)
    fast = pack(weight.bfloat16(), bias.bfloat16(), kind)
    monkeypatch.setattr(packed, "LIBRARY", None)
    packed._warn_missing.cache_clear()
    with pytest.warns(RuntimeWarning, match="library is missing"):
        slow = pack(weight.bfloat16(), bias.bfloat16(), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(weight, None, kind)
    assert type(fast) is not type(slow) or cpu.MISSING is not None
    # In bfloat16 PyTorch rounds what comes out, too.
    assert (fast(x) - slow(x)).norm() < slow(x).norm() * (1e-2 if kind == "bfloat16" else 1e-6)
    assert torch.equal(slow(x, out=torch.empty(9, 50)), slow(x))
    with pytest.raises(UserError, match="x: expected"):
        slow(x[:, :-1])


def test_bytes_and_copies() -> None:
    weight, bias = draw(64, 96), draw(64)
    sizes = {kind: pack(weight, None, kind).nbytes for kind in KINDS}
    assert sizes == {"float32": 64 * 96 * 4, "bfloat16": 64 * 96 * 2, "int8": 64 * 100, "int4": 64 * 3 * (16 + 4)}
    found = pack(weight, bias, "int8")
    assert found.nbytes == sizes["int8"] + 64 * 4
    assert torch.equal(copy.deepcopy({"layer": found})["layer"](weight), found(weight))


def test_what_does_not_fit_is_refused() -> None:
    weight, bias = layer(40, 70)
    found = pack(weight, bias, "int8")
    for x in (draw(3, 69), draw(3, 70).double(), draw(70, 3).T, draw(3, 70).to("meta")):
        with pytest.raises(UserError, match=r"x: expected float32 \[3, 70\], contiguous, on cpu"):
            found(x)
    for out in (draw(3, 41), draw(40, 3).T, draw(3, 40).half()):
        with pytest.raises(UserError, match="out: expected"):
            found(draw(3, 70), out=out)
    with pytest.raises(UserError, match="not known"):
        pack(weight, bias, "int3")
    with pytest.raises(UserError, match=r"must be \[N,K\]"):
        pack(torch.empty(0, 70), None, "int8")
    with pytest.raises(UserError, match="bias must be"):
        pack(weight, bias[1:], "int8")
    with pytest.raises(UserError, match="not finite"):
        pack(weight.index_fill(0, torch.tensor([3]), torch.inf), bias, "float32")
    with pytest.raises(UserError, match="CPU only"):
        pack(weight.to("meta"), None, "int4")


# ---------------------------------------------------------------------------------------------------------------------
# Between linear layers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 40, 576, 1031])
def test_norms(instruction_set: str, width: int, two_threads: None) -> None:
    x, y, weight = draw(200, width), draw(200, width, seed=1), draw(width, seed=2)
    added, wide = x + y, (x + y).double()
    wanted = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    kept = x.clone()
    normed = add_rms_norm(kept, y, weight, 1e-5)
    assert torch.equal(kept, added)
    assert torch.allclose(normed.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(rms_norm(added, weight, 1e-5), normed)
    assert torch.equal(rms_norm(added, weight, 1e-5, out=added), normed) and torch.equal(added, normed)
    rows = torch.cat([rms_norm(row[None], weight, 1e-5) for row in kept])
    assert torch.equal(rows, normed)


@pytest.mark.parametrize("width", [1, 33, 1536])
def test_silu_mul(instruction_set: str, width: int, two_threads: None) -> None:
    x = draw(90, 2 * width) * 10
    gate, up = x.double().chunk(2, -1)
    y = silu_mul(x)
    assert torch.allclose(y.double(), gate / (1 + (-gate).exp()) * up, rtol=2e-6, atol=1e-30)
    assert torch.equal(torch.cat([silu_mul(row[None]) for row in x]), y)
    assert torch.equal(silu_mul(torch.tensor([[-1e4, 2.0]])), torch.zeros(1, 1))
    assert torch.equal(silu_mul(torch.tensor([[1e4, 2.0]])), torch.full((1, 1), 2e4))
    assert silu_mul(torch.tensor([[torch.nan, 2.0]])).isnan()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_that_of_the_model(
    instruction_set: str, interleaved: bool, dtype: torch.dtype, two_threads: None
) -> None:
    config, width, start, rows, heads = tiny(), 18, 5, 150, 3
    table = Rotation(torch.arange(64)[None], width, config)
    positions = torch.randint(64, (rows,), generator=torch.Generator().manual_seed(0))
    row = draw(rows, 7 + heads * 30)  # heads lie in a wider row
    before = row.clone()
    x = row[:, 7:].view(rows, heads, 30)
    assert rotate(x, positions.to(dtype), table.cos[0], table.sin[0], start, interleaved) is x
    part = before[:, 7:].view(rows, heads, 30)[..., start : start + width].double()
    wanted = Rotation(positions[None], width, config)(part[None], interleaved=interleaved)[0]
    assert torch.allclose(x[..., start : start + width].double(), wanted, rtol=1e-5, atol=1e-6)
    x[..., start : start + width] = before[:, 7:].view(rows, heads, 30)[..., start : start + width]
    assert torch.equal(row, before)  # and nothing else was touched


def test_operators_refuse_what_does_not_fit() -> None:
    cos, x = torch.ones(8, 4), draw(2, 3, 10)
    positions = torch.tensor([0, 7])
    for wrong in ([0, 8], [-1, 0]):
        before = x.clone()
        with pytest.raises(UserError, match="0 to 7"):
            rotate(x, torch.tensor(wrong), cos, cos, 0, False)
        assert torch.equal(x, before)
    for arguments in (
        (x, positions, cos, cos, 3, False),
        (x, positions[:1], cos, cos, 0, False),
        (x, positions.float(), cos, cos, 0, False),
        (x.double(), positions, cos, cos, 0, False),
        (x, positions, cos, cos[1:], 0, False),
        (x.mT, positions, cos, cos, 0, False),
    ):
        with pytest.raises(UserError):
            rotate(*arguments)
    for function, arguments in (
        (rms_norm, (draw(3, 4), draw(5), 1e-5)),
        (rms_norm, (draw(4, 3).T, draw(4), 1e-5)),
        (rms_norm, (draw(3, 4), draw(4).to("meta"), 1e-5)),
        (add_rms_norm, (draw(3, 4), draw(2, 4), draw(4), 1e-5)),
        (silu_mul, (draw(3, 5),)),
        (silu_mul, (draw(3, 4).double(),)),
    ):
        with pytest.raises(UserError):
            function(*arguments)


def test_operators_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, weight, positions = draw(4, 20), draw(4, 20, seed=1), draw(20, seed=2), torch.tensor([3, 1, 0, 2])
    angles = draw(5, 6)

    def everything() -> list[Tensor]:
        added = x.clone()
        return [
            rms_norm(x, weight, 1e-6),
            add_rms_norm(added, y, weight, 1e-6),
            added,
            silu_mul(x),
            *(rotate(x.clone().view(2, 2, 20), positions[:2], angles.cos(), angles.sin(), 3, i) for i in (False, True)),
        ]

    fast = everything()
    monkeypatch.setattr(packed, "LIBRARY", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slow = everything()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(fast, slow, strict=True))
