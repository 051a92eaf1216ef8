"""int8 and int4: each layer's error is bounded, every family runs, what must stay whole does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inazuma.errors import UserError
from inazuma.model.plan import plan
from inazuma.model.quantize import PackedLinear, QuantizedExperts, quantize
from tests.model.test_families import CLASSES, ids_of, pair
from tests.model.tiny import build, tiny, tokens

ERROR = {"int8": 0.02, "int4": 0.1}
"""Relative, of a layer's outputs with normally distributed weights; rounding alone gives about 0.011 and 0.08."""


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 130])
@pytest.mark.parametrize("kind", ERROR)
def test_error_of_a_layer(kind, rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(48, 128, generator=generator, dtype=torch.float64)
    weight *= torch.logspace(-2, 2, 48, dtype=torch.float64)[:, None]  # outputs of very different size
    bias = torch.randn(48, generator=generator, dtype=torch.float64) * weight.norm(dim=1)
    x = torch.randn(2, rows, 128, generator=generator, dtype=torch.float64)
    layer = PackedLinear(weight.to(dtype), bias.to(dtype), kind)
    y, expected = layer(x.to(dtype)), x @ weight.T + bias
    assert y.dtype == dtype and y.shape == expected.shape
    scaled = weight.norm(dim=1)
    assert relative((y - bias) / scaled, (expected - bias) / scaled) < ERROR[kind]


@pytest.mark.parametrize("kind", ERROR)
@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_every_family(family, kind, tmp_path):
    model, _ = pair(family, 0, tmp_path)
    ids = ids_of(2)
    expected = model(ids)
    kept = {name: x.clone() for name, x in model.named_parameters() if ".indexer." in name or "embed_tokens" in name}
    quantize(model, kind)
    names = dict(model.named_parameters())
    assert all(torch.equal(names[name], x) for name, x in kept.items())
    linears = [name for name, x in model.named_modules() if isinstance(x, nn.Linear)]
    assert all(name.endswith("kv_b_proj") or ".indexer." in name for name in linears)
    assert model.lm_head.packed.kind == "int8"
    # Routing and selection may turn on a rounding, so a bound of the logits is loose; of nothing it would be 1.4.
    assert relative(model(ids), expected) < 0.5
    assert [len(row) for row in model.generate(ids[:, :9], 5, stop=[])] == [14, 14]


@pytest.mark.parametrize("kind", ERROR)
@torch.no_grad()
def test_experts_are_those_they_were(kind):
    config = tiny(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, hidden_size=64)
    model = build(config, dtype=torch.float32)
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    chosen = torch.randint(6, (20, 2), generator=torch.Generator().manual_seed(1))
    expected = model.model.layers[1].mlp.experts(x, chosen)
    quantize(model, kind)
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts, QuantizedExperts)
    assert relative(experts(x, chosen), expected) < 2.5 * ERROR[kind]  # three layers, one after another


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ERROR)
def test_the_plan_counts_its_bytes(kind, tied):
    """Of widths in whole panels and groups, to the byte."""
    config = tiny(
        attention="gqa", hidden_size=64, intermediate_size=96, vocab_size=128, tie_word_embeddings=tied,
        n_routed_experts=4, moe_intermediate_size=32,
    )  # fmt: skip
    model = quantize(build(config, dtype=torch.bfloat16), kind)
    packed = sum(x.packed.nbytes for x in model.modules() if isinstance(x, PackedLinear))
    experts = sum(x.nbytes for m in model.modules() if isinstance(m, QuantizedExperts) for e in m.experts for x in e)
    assert plan(config).experts * plan(config).expert_bytes(kind) == experts
    assert plan(config).resident_bytes(kind) == packed + sum(x.nbytes for x in model.parameters())


@pytest.mark.parametrize("kind", ERROR)
@torch.no_grad()
def test_a_token_gets_the_same_whatever_is_beside_it(kind):
    model = quantize(build(tiny(), dtype=torch.float32), kind)
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    mlp = model.model.layers[0].mlp.gate_proj
    assert torch.equal(torch.cat([mlp(row[None]) for row in x]), mlp(x))


def test_what_cannot_be_done_is_refused(tmp_path):
    model = build(tiny(), dtype=torch.float32)
    with pytest.raises(UserError, match="not known"):
        quantize(model, "int3")
    with pytest.raises(UserError, match="CPU only"):
        quantize(build(tiny(), dtype=torch.float32).to("meta"), "int8")
    with pytest.raises(UserError, match="cannot be saved"):
        quantize(model, "int8").save(tmp_path / "model")
    assert model(tokens(1, 5)).isfinite().all()
