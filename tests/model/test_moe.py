"""The mixture of experts: transformers' values and gradients, no token lost, the same bits, experts kept busy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DeepseekV3Config, Glm4MoeConfig, GlmMoeDsaConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaMoE
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock, load_balancing_loss_func

from inazuma.errors import UserError
from inazuma.model import ModelConfig
from inazuma.model.layers import TOKENS, SwiGLU
from inazuma.model.moe import Experts, MixtureOfExperts, balance_loss, count, imbalance

SIGMOID = {
    "deepseek_v3": (DeepseekV3Config, DeepseekV3MoE),
    "glm4_moe": (Glm4MoeConfig, Glm4MoeMoE),
    "glm_moe_dsa": (GlmMoeDsaConfig, GlmMoeDsaMoE),
}
SHAPES = {
    # name: experts, chosen, groups, groups kept, shared, E, F, B, T
    "usual": (16, 4, 1, 1, 1, 32, 16, 2, 9),
    "groups": (24, 5, 6, 2, 1, 16, 8, 2, 11),
    "odd": (7, 3, 1, 1, 2, 13, 5, 3, 7),
    "odd-groups": (15, 4, 5, 3, 3, 11, 9, 1, 13),
    "fewer-tokens-than-experts": (64, 2, 4, 2, 1, 8, 4, 1, 3),
    "one-token": (16, 8, 4, 3, 2, 16, 8, 1, 1),
    "one-expert": (1, 1, 1, 1, 1, 12, 8, 2, 5),
    "all-experts": (6, 6, 2, 2, 1, 12, 8, 2, 5),
    "many-tokens": (8, 2, 1, 1, 1, 8, 12, 2, 200),
}


def configure(**changes: Any) -> ModelConfig:
    fields = {"n_routed_experts": 16, "hidden_size": 32, "moe_intermediate_size": 16, "num_experts_per_tok": 3}
    return ModelConfig(**{"vocab_size": 9} | fields | changes)


def shaped(name: str, **changes: Any) -> tuple[ModelConfig, tuple[int, int, int]]:
    """A configuration of `SHAPES`, and the shape of its input."""
    experts, chosen, groups, kept, shared, hidden, width, rows, length = SHAPES[name]
    fields = {
        "n_routed_experts": experts, "num_experts_per_tok": chosen, "n_group": groups, "topk_group": kept,
        "n_shared_experts": shared, "hidden_size": hidden, "moe_intermediate_size": width,
        "routed_scaling_factor": 1.7,
    }  # fmt: skip
    return configure(**fields | changes), (rows, length, hidden)


@torch.no_grad()
def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> MixtureOfExperts:
    """A mixture of which no part is neutral."""
    model = MixtureOfExperts(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    if model.gate.e_score_correction_bias is not None:
        model.gate.e_score_correction_bias.copy_(torch.randn(config.n_routed_experts, generator=generator) * 0.1)
    return model.to(dtype)


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def theirs_of(ours: MixtureOfExperts, kind: type, module: type, **fields: Any) -> torch.nn.Module:
    """The same mixture in transformers."""
    config = ours.gate.config
    names = ("hidden_size", "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob")
    theirs = module(kind(**{name: getattr(config, name) for name in names} | fields)).to(ours.gate.weight.dtype)
    state = ours.state_dict()
    pair = state.pop("experts.gate_proj"), state.pop("experts.up_proj")
    theirs.load_state_dict(state | {"experts.gate_up_proj": torch.cat(pair, dim=1)})
    return theirs


def gradients(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients by the names of transformers."""
    x = x.clone().requires_grad_()
    output = module(x)
    (output * draw(*x.shape, seed=2, dtype=x.dtype)).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    if "experts.gate_proj" in found:
        pair = found.pop("experts.gate_proj"), found.pop("experts.up_proj")
        found["experts.gate_up_proj"] = torch.cat(pair, dim=1)
    return found | {"output": output.detach(), "input": x.grad}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = (found[name] - value).abs().max().item()
        assert difference <= tolerance * value.abs().max().clamp(min=1e-3).item(), name


# In float64 transformers' router stays in float32.
PRECISION = {torch.float32: 2e-5, torch.float64: 2e-6}


@pytest.mark.parametrize("dtype", PRECISION, ids=["float32", "float64"])
@pytest.mark.parametrize("family", SIGMOID)
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "one-expert"])  # theirs always wants two
def test_values_and_gradients_are_those_of_transformers_with_sigmoid(shape, family, dtype):
    for normalised in (True, False):
        config, size = shaped(shape, norm_topk_prob=normalised)
        ours = build(config, dtype=dtype)
        fields = ("n_routed_experts", "n_shared_experts", "n_group", "topk_group", "routed_scaling_factor")
        theirs = theirs_of(ours, *SIGMOID[family], **{name: getattr(config, name) for name in fields})
        x = draw(*size, dtype=dtype)
        same(gradients(ours, x), gradients(theirs, x), PRECISION[dtype])


@pytest.mark.parametrize("dtype", PRECISION, ids=["float32", "float64"])
@pytest.mark.parametrize("shape", [name for name in SHAPES if SHAPES[name][2] == 1])
def test_values_and_gradients_are_those_of_transformers_with_softmax(shape, dtype):
    for normalised in (True, False):
        config, size = shaped(
            shape, scoring_func="softmax", n_shared_experts=0, routed_scaling_factor=1.0, norm_topk_prob=normalised
        )
        ours = build(config, dtype=dtype)
        theirs = theirs_of(ours, Qwen3MoeConfig, Qwen3MoeSparseMoeBlock, num_experts=config.n_routed_experts)
        x = draw(*size, dtype=dtype)
        same(gradients(ours, x), gradients(theirs, x), PRECISION[dtype])


def every_expert(model: MixtureOfExperts, x: Tensor) -> Tensor:
    """The definition, in float64, dense: each expert works on each token, and Python chooses."""
    config, state = model.gate.config, {name: value.double() for name, value in model.state_dict().items()}
    x = x.double()
    scores = x @ state["gate.weight"].T
    scores = scores.sigmoid() if config.scoring_func == "sigmoid" else scores.softmax(-1)
    bias = state.get("gate.e_score_correction_bias", torch.zeros(config.n_routed_experts))
    best_of_group, size = 2 if config.scoring_func == "sigmoid" else 1, config.n_routed_experts // config.n_group
    hidden = F.silu(torch.einsum("bte,nfe->btnf", x, state["experts.gate_proj"]))
    hidden = hidden * torch.einsum("bte,nfe->btnf", x, state["experts.up_proj"])
    outputs = torch.einsum("btnf,nef->btne", hidden, state["experts.down_proj"])
    weights = torch.zeros_like(scores)
    for row, token in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        score, value = scores[row, token], (scores[row, token] + bias).tolist()
        of_group = [sum(sorted(value[g * size : (g + 1) * size])[-best_of_group:]) for g in range(config.n_group)]
        groups = sorted(range(config.n_group), key=lambda g: (-of_group[g], g))[: config.topk_group]
        able = [n for n in range(config.n_routed_experts) if n // size in groups]
        chosen = sorted(able, key=lambda n: (-value[n], n))[: config.num_experts_per_tok]
        total = score[chosen].sum() if config.norm_topk_prob else 1.0
        weights[row, token, chosen] = score[chosen] / total * config.routed_scaling_factor
    y = (outputs * weights[..., None]).sum(2)
    if config.n_shared_experts:
        gate, up, down = (state[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down"))
        y = y + (F.silu(x @ gate.T) * (x @ up.T)) @ down.T
    return y


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_token_is_dropped_however_uneven_the_experts(shape, scoring):
    for skew in (0.0, 3.0):  # with the larger one most tokens want the same experts
        config, size = shaped(shape, scoring_func=scoring)
        model = build(config, dtype=torch.float64)
        x = draw(*size, dtype=torch.float64) + skew
        torch.testing.assert_close(model(x), every_expert(model, x), rtol=1e-9, atol=1e-11)
        assert model.load().sum() == size[0] * size[1] * config.num_experts_per_tok


def test_gradients_are_those_of_finite_differences():
    config = configure(n_routed_experts=4, num_experts_per_tok=2, hidden_size=5, moe_intermediate_size=3)
    model = build(config, dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,), {"output_aux_loss": True})

    x = draw(1, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_many_tokens_without_gradients_are_the_same():
    model = build(configure(hidden_size=8, moe_intermediate_size=4), dtype=torch.float64)
    x = draw(2, TOKENS + 5, 8, dtype=torch.float64)
    with torch.no_grad():
        pieces = model(x)
    torch.testing.assert_close(pieces, model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_of_equal_scores_the_lower_index_wins(scoring):
    model = build(configure(scoring_func=scoring, num_experts_per_tok=5), dtype=torch.float64)
    torch.nn.init.zeros_(model.gate.weight)  # all scores are equal
    if scoring == "sigmoid":
        model.gate.e_score_correction_bias.zero_()
    x = draw(2, 50, 32, dtype=torch.float64)
    routing = model.gate(x.flatten(0, 1))
    assert (routing.experts == torch.arange(5)).all()
    torch.testing.assert_close(routing.weights, torch.full_like(routing.weights, 0.2))


def test_of_equal_groups_the_lower_index_wins():
    model = build(configure(num_experts_per_tok=3, n_group=4, topk_group=2))
    torch.nn.init.zeros_(model.gate.weight)
    model.gate.e_score_correction_bias.zero_()
    model.gate.e_score_correction_bias[-1] = 0.5  # the last group is best, and of the others the first is kept
    assert model.gate(draw(50, 32)).experts.unique(dim=0).tolist() == [[15, 0, 1]]


def test_the_bias_chooses_and_does_not_weigh():
    model = build(configure(norm_topk_prob=False, num_experts_per_tok=1))
    model.gate.e_score_correction_bias.zero_()
    model.gate.e_score_correction_bias[7] = 100.0
    x = draw(20, 32)
    routing = model.gate(x)
    assert (routing.experts == 7).all()
    torch.testing.assert_close(routing.weights[:, 0], (x @ model.gate.weight[7]).sigmoid())


def bits(model: MixtureOfExperts, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    return list(gradients(model, x).values())


@pytest.mark.parametrize(("hidden", "width"), [(64, 32), (61, 31)], ids=["grouped", "one-by-one"])
def test_bits_are_the_same_twice_and_with_two_threads(hidden, width):
    model = build(configure(hidden_size=hidden, moe_intermediate_size=width, num_experts_per_tok=6))
    x = draw(2, 300, hidden)
    once = bits(model, x)
    again = bits(model, x)
    torch.set_num_threads(2)
    try:
        threads = bits(model, x)
    finally:
        torch.set_num_threads(1)
    for a, b, c in zip(once, again, threads, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_the_grouped_product_is_used_and_is_the_loop(monkeypatch):
    model, x = build(configure()), draw(2, 40, 32)
    grouped = gradients(model, x)
    assert model.experts.can_group(x.flatten(0, 1).repeat(3, 1))
    monkeypatch.setattr(Experts, "can_group", lambda *_: False)
    model.zero_grad()
    same(gradients(model, x), grouped, 2e-6)


@pytest.mark.parametrize(("hidden", "width"), [(32, 16), (31, 15)], ids=["grouped", "one-by-one"])
def test_an_expert_without_tokens_gets_a_gradient_of_zero(hidden, width):
    config = configure(hidden_size=hidden, moe_intermediate_size=width, n_routed_experts=64)
    # Two tokens in many copies: more pairs than experts, of which few are chosen.
    model, x = build(config), draw(1, 2, hidden).repeat(1, 20, 1)
    assert model.experts.can_group(x[0].repeat(3, 1)) == (hidden == 32)
    for _ in range(10):
        used = [torch.full((64, hidden, width), torch.nan) for _ in range(8)]  # what freed memory may hold
        del used
        model.zero_grad()
        model(x).sum().backward()
        idle = count(model.gate(x[0]).experts, 64) == 0
        assert idle.sum() >= 58
        for weight in model.experts.parameters():
            assert (weight.grad[idle] == 0).all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
def test_decoding_reads_only_the_chosen_experts(autocast):
    config = configure()
    model = build(config).eval()
    x = draw(1, 1, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = model(x)
        chosen = model.gate(x[0]).experts.flatten()
        idle = [n for n in range(config.n_routed_experts) if n not in chosen.tolist()]
        for weight in model.experts.parameters():
            weight[idle] = torch.nan
        assert len(chosen) == 3 and torch.equal(model(x), before)
    assert model.load().sum() == 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert not model.experts.can_group(x[0].expand(3, -1))  # which would convert all of them


def test_under_autocast_the_router_stays_in_float32_and_the_experts_do_not():
    model, x = build(configure()), draw(2, 20, 32)
    expected = model.gate(x.flatten(0, 1))
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        routing, output = model.gate(x.flatten(0, 1)), model(x)
        assert model.experts(x[0], routing.experts[:20]).dtype == torch.bfloat16
        output.sum().backward()
    assert torch.equal(routing.weights, expected.weights) and torch.equal(routing.experts, expected.experts)
    assert output.dtype == torch.float32
    assert 1e-6 < (output - exact).abs().max() < 0.03 * exact.abs().max()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_in_bfloat16_the_bias_stays_in_float32():
    model = build(configure())
    bias = model.gate.e_score_correction_bias.clone()
    model.to(torch.bfloat16)
    assert model.gate.weight.dtype == torch.bfloat16 and torch.equal(model.gate.e_score_correction_bias, bias)
    assert model.gate.e_score_correction_bias.dtype == torch.float32
    assert model(draw(1, 4, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_frozen_weights_pass_the_gradient_on():
    model = build(configure())
    x = draw(2, 5, 32).requires_grad_()
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    model.zero_grad()
    model.requires_grad_(False)
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_and_what_a_checkpoint_keeps():
    model = MixtureOfExperts(configure())
    assert {name: list(x.shape) for name, x in model.state_dict().items()} == {
        "gate.weight": [16, 32],
        "gate.e_score_correction_bias": [16],
        "experts.gate_proj": [16, 16, 32],
        "experts.up_proj": [16, 16, 32],
        "experts.down_proj": [16, 32, 16],
    } | {f"shared_experts.{name}.weight": list(x.weight.shape) for name, x in SwiGLU(32, 16).named_children()}
    softmax = MixtureOfExperts(configure(scoring_func="softmax", n_shared_experts=0)).state_dict()
    assert set(softmax) == {"gate.weight", "experts.gate_proj", "experts.up_proj", "experts.down_proj"}


def test_tokens_are_counted_in_training_only():
    model, x = build(configure()), draw(2, 7, 32)
    model.eval()(x)
    model.train()
    with torch.no_grad():
        model(x)
    assert model.load().tolist() == [0] * 16
    model(x)
    model(x)
    chosen = model.gate(x.flatten(0, 1)).experts.flatten().tolist()
    assert model.load().tolist() == [2 * chosen.count(n) for n in range(16)]
    model.update_balance(0.0)
    assert model.load().tolist() == [0] * 16


def test_a_step_of_balance():
    model = build(configure(n_routed_experts=4, num_experts_per_tok=1))
    model.gate.e_score_correction_bias.zero_()
    model.load().copy_(torch.tensor([9, 3, 6, 6]))  # mean 6
    model.update_balance(0.25)
    assert model.gate.e_score_correction_bias.tolist() == [-0.25, 0.25, 0.0, 0.0]
    with pytest.raises(UserError, match="speed: must not be negative, got -1"):
        model.update_balance(-1.0)
    with pytest.raises(UserError, match="speed: softmax has no bias"):
        build(configure(scoring_func="softmax")).update_balance(0.1)


def collapse(model: MixtureOfExperts) -> None:
    """Makes the router send every token of `crowd` to the first experts."""
    with torch.no_grad():
        model.gate.weight.mul_(0.3)
        model.gate.weight[:, 0] = torch.linspace(1.0, -1.0, len(model.gate.weight))


def crowd(step: int) -> Tensor:
    x = draw(4, 128, 32, seed=100 + step)
    x[..., 0] = 2.0
    return x


def test_a_collapsed_router_is_seen_and_the_bias_balances_it():
    model = build(configure())
    collapse(model)
    model.gate.e_score_correction_bias.zero_()
    model(crowd(0))
    before = imbalance(model.load())
    assert before.max_violation > 3.5 and before.idle > 0.4  # at most 16/3 - 1
    for step in range(200):
        model.update_balance(0.01)
        model(crowd(step))
    after = imbalance(model.load())
    assert after.max_violation < 0.4 and after.idle == 0


def test_the_measure():
    assert imbalance(torch.tensor([5, 5, 5, 5])) == (0.0, 0.0)
    assert imbalance(torch.tensor([8, 0, 0, 0])) == (3.0, 0.75)
    assert imbalance(torch.tensor([6, 2, 4, 0])) == (1.0, 0.25)
    with pytest.raises(UserError, match="load: no tokens were counted"):
        imbalance(torch.zeros(4, dtype=torch.int64))


def test_the_loss_of_balance_is_that_of_qwen3():
    config = configure(scoring_func="softmax")
    model, x = build(config), draw(2, 30, 32)
    logits = F.linear(x.flatten(0, 1), model.gate.weight)
    _, loss = model(x, output_aux_loss=True)
    expected = load_balancing_loss_func((logits,), config.n_routed_experts, config.num_experts_per_tok)
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, model.gate.weight)
    torch.testing.assert_close(found, *torch.autograd.grad(expected, model.gate.weight))
    even = balance_loss(torch.full((8, 4), 0.3), torch.tensor([4, 4, 4, 4]))
    torch.testing.assert_close(even, torch.tensor(2.0))  # K


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
def test_a_softmax_router_is_balanced_by_the_loss_and_stays_collapsed_without(coefficient):
    model = build(configure(scoring_func="softmax"))
    teacher = build(configure(), seed=9).eval()
    collapse(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    errors = []
    for step in range(200):
        x = crowd(step)
        with torch.no_grad():
            target = teacher(x)
        model.update_balance(0.0)
        output, loss = model(x, output_aux_loss=True)
        error = F.mse_loss(output, target)
        (error + coefficient * loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    state = imbalance(model.load())
    assert errors[-1] < errors[0] / 2  # it learns
    if coefficient:
        assert state.max_violation < 1 and state.idle == 0
    else:
        assert state.max_violation > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_routed_experts": 0}, "n_routed_experts: must be at least 1, got 0"),
        ({"n_shared_experts": -1}, "n_shared_experts: must be at least 0, got -1"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace: must be at least 0, got -1"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok: 17 of the 16 experts"),
        ({"num_experts_per_tok": 5, "n_group": 4}, "num_experts_per_tok: 5 of the 4 experts"),
        ({"n_group": 3}, "n_group: 3 groups .* n_routed_experts = 16"),
        ({"n_group": 4, "topk_group": 5}, "topk_group: 5 .* n_group = 4"),
        ({"n_group": 16, "topk_group": 4}, "n_group: .* best two experts, but has 1"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor: must be greater than 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        configure(**changes)
    assert "\n" not in str(error.value)


def test_which_layers_have_experts():
    assert [configure().has_experts(layer) for layer in range(3)] == [False, True, True]
    assert configure(first_k_dense_replace=0, n_shared_experts=0).has_experts(0)
    assert not configure(n_routed_experts=None).has_experts(3)
    assert configure(scoring_func="softmax", n_group=16, topk_group=4).n_group == 16  # one expert a group will do
