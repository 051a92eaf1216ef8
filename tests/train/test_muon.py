"""Muon: torch's own in other arithmetic, and orthogonal by the definition in float64."""

from __future__ import annotations

import pytest
import torch

from inazuma.train.muon import Muon, orthogonalize

SHAPES = [(48, 48), (96, 32), (32, 96)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_iteration_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    result = orthogonalize(matrix)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), u @ torch.diag(values) @ vt, rtol=0, atol=1e-5)
    assert 0.6 < values.min() < values.max() < 1.25


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch_within_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs, idle = (torch.nn.Parameter(start.clone()) for _ in range(3))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    mine = Muon([ours, idle], **options)
    torchs = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.01 * moved
    assert torch.equal(idle, start), "what has no gradient moved"
    assert torch.equal(mine.state[ours]["momentum_buffer"], torchs.state[theirs]["momentum_buffer"])
