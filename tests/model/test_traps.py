"""Where implementations of DeepSeek Sparse Attention went wrong before: the traps that concern the model.

The operators' own are in tests/ops.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import DeepseekV32Config, GlmMoeDsaConfig
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer, DeepseekV32RotaryEmbedding
from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaIndexer

import inazuma
from inazuma.errors import UserError
from inazuma.model import Cache, ModelConfig, families
from inazuma.model.attention import Context, LatentAttention, Observation
from inazuma.model.indexer import IndexTensors, LightningIndexer
from inazuma.model.layers import Rotation
from inazuma.ops import select_tokens
from tests.model.tiny import YARN, build, is_indexer, observed, randomise_norms, tiny, tokens

BOTH = pytest.mark.parametrize("attention", ["mla", "gqa"])


def rotation(config: ModelConfig, positions: Tensor) -> Rotation:
    return Rotation(positions[None], config.index_rope_head_dim, config)


def indexer(config: ModelConfig, dtype: torch.dtype = torch.float32) -> LightningIndexer:
    torch.manual_seed(0)
    made = LightningIndexer(config).to(dtype)
    randomise_norms(made)
    return made


def inputs(config: ModelConfig, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, length, config.hidden_size, generator=generator, dtype=torch.float64)
    query = torch.randn(1, length, config.q_lora_rank, generator=generator, dtype=torch.float64)
    return x.to(dtype), query.to(dtype)


def scores(index: IndexTensors) -> Tensor:
    """I[t,s] = sum_i w[t,i] relu(q[t,i] . k[s]), `[B,T,S]`."""
    return torch.einsum("bti,btsi->bts", index.w, torch.einsum("btic,bsc->btsi", index.q, index.k).relu())


# ------------------------------------------------------------------------------------------------------------- trap 1

LENGTH = 64


class WhatTopkSaw(TorchFunctionMode):
    """Notes the scores among which transformers' indexers choose; they return the choice alone."""

    scores: Tensor

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is Tensor.topk:
            self.scores = arguments[0]
        return function(*arguments, **(named or {}))


def theirs(kind: type, config: ModelConfig, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores `[1,T,T]` (-inf where not visible) and the selection as a mask, of one of transformers' indexers."""
    names = ("hidden_size", "q_lora_rank", "qk_rope_head_dim", "index_topk", "index_n_heads", "index_head_dim")
    configs = {DeepseekV32Indexer: DeepseekV32Config, GlmMoeDsaIndexer: GlmMoeDsaConfig}
    hf = configs[kind](**{name: getattr(config, name) for name in names})
    made = kind(hf, 0)
    made.load_state_dict(weights)
    x, query = inputs(config, LENGTH)
    positions = torch.arange(LENGTH)[None]
    causal = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool).tril()
    with WhatTopkSaw() as saw:
        chosen = made(x, query, DeepseekV32RotaryEmbedding(hf)(x, positions), causal, positions)
    mask = torch.zeros(1, LENGTH, LENGTH, dtype=torch.bool).scatter(2, chosen.long(), True)
    return saw.scores, mask & causal


@pytest.mark.parametrize(
    ("interleaved", "right", "wrong"),
    [(False, DeepseekV32Indexer, GlmMoeDsaIndexer), (True, GlmMoeDsaIndexer, DeepseekV32Indexer)],
    ids=["deepseek-half-split", "glm-interleaved"],
)
@torch.no_grad()
def test_trap_1_the_indexers_rope_is_half_split_in_deepseek_and_interleaved_in_glm(interleaved, right, wrong):
    config = tiny(indexer_rope_interleave=interleaved, index_n_heads=32)
    ours = indexer(config)
    index = ours(*inputs(config, LENGTH), rotation(config, torch.arange(LENGTH)))
    chosen = select_tokens(*index, config.index_topk)
    mask = torch.zeros(1, LENGTH, LENGTH + 1, dtype=torch.bool).scatter(2, chosen.long() % (LENGTH + 1), True)[..., :-1]

    their_scores, their_mask = theirs(right, config, ours.state_dict())
    torch.testing.assert_close(scores(index).masked_fill(their_scores == -math.inf, -math.inf), their_scores)
    assert torch.equal(mask, their_mask)
    _, other_mask = theirs(wrong, config, ours.state_dict())
    assert (mask != other_mask).sum() > 0.1 * mask.sum()  # the layouts do select differently


EXPANDED = {"stage": "warmup"}
"""A stage in which multi-head latent attention shows each head's own keys."""


@torch.no_grad()
def test_trap_1_the_main_attentions_rope_is_interleaved_whatever_the_indexers():
    # A rotation by neighbours keeps each neighbouring pair's length, one by halves that of each (i, i + width/2).
    for interleaved in (False, True):
        model = build(tiny(indexer_rope_interleave=interleaved))
        N, P = model.config.qk_nope_head_dim, model.config.qk_rope_head_dim
        ids, still = tokens(1, 9), torch.arange(9, dtype=torch.int32)[None]  # all at position 0: nothing turns
        layer = model.model.layers[0]
        x = layer.input_layernorm(model.model.embed_tokens(ids))
        attention = layer.self_attn
        plain = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x))).unflatten(-1, (-1, N + P))[..., N:]
        neighbours = plain.unflatten(-1, (-1, 2)).norm(dim=-1)
        turned = (
            observed(model, ids, **EXPANDED)[0].q[..., N:].unflatten(-1, (2, -1)).norm(dim=-2)
        )  # lies in halves afterwards
        torch.testing.assert_close(turned, neighbours)
        unturned = observed(model, ids, first=still, **EXPANDED)[0].q[..., N:]
        torch.testing.assert_close(unturned, torch.cat([plain[..., 0::2], plain[..., 1::2]], dim=-1))


# ------------------------------------------------------------------------------------------------------------- trap 2


@torch.no_grad()
def test_trap_2_the_indexers_width_is_rope_then_plain_the_main_attentions_plain_then_rope():
    model = build(tiny())
    N, P = model.config.qk_nope_head_dim, model.config.qk_rope_head_dim
    ids = tokens(1, 9)
    moving = observed(model, ids, **EXPANDED)[0]
    first = torch.arange(9, dtype=torch.int32)[None]  # the same, all at position 0
    still = observed(model, ids, first=first, **EXPANDED)[0]

    def turned(a: Tensor, b: Tensor) -> list[bool]:
        return (a - b)[:, 1:].abs().flatten(0, -2).amax(0).gt(1e-6).tolist()

    plain_then_rope = [False] * N + [True] * P
    rope_then_plain = [True] * P + [False] * (model.config.index_head_dim - P)
    assert turned(moving.q, still.q) == turned(moving.k, still.k) == plain_then_rope
    assert turned(moving.index.q, still.index.q) == turned(moving.index.k, still.index.k) == rope_then_plain


# ------------------------------------------------------------------------------------------------------------- trap 3


@torch.no_grad()
def test_trap_3_the_index_keys_norm_is_a_layer_norm_with_bias_and_eps_1e_6():
    config = tiny()
    ours = indexer(config, torch.float64)
    x, query = inputs(config, 7, torch.float64)
    x = x * 3e-3  # a variance near eps
    k = x @ ours.wk.weight.T
    centred = k - k.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * ours.k_norm.weight + ours.k_norm.bias
    index = ours(x, query, rotation(config, torch.zeros(7)))  # position 0 turns nothing
    torch.testing.assert_close(index.k, expected, rtol=1e-9, atol=1e-12)
    assert ours.k_norm.bias.abs().min() > 0


@torch.no_grad()
def test_trap_3_the_head_weights_are_computed_in_float32_also_under_bfloat16_autocast():
    config = tiny()
    ours = indexer(config)
    x, query = inputs(config, 7)
    expected = F.linear(x, ours.weights_proj.weight) * (config.index_n_heads * config.index_head_dim) ** -0.5
    with torch.autocast("cpu", torch.bfloat16):
        index = ours(x, query, rotation(config, torch.arange(7)))
    assert index.w.dtype == torch.float32 and index.q.dtype == torch.bfloat16
    assert torch.equal(index.w, expected)
    assert not torch.equal(index.w.bfloat16().float(), expected)


@torch.no_grad()
def test_trap_3_a_bfloat16_model_computes_the_head_weights_in_float32():
    config = tiny()
    ours = indexer(config, torch.bfloat16)
    x, query = inputs(config, 7, torch.bfloat16)
    index = ours(x, query, rotation(config, torch.arange(7)))
    expected = F.linear(x.double(), ours.weights_proj.weight.double())
    expected *= (config.index_n_heads * config.index_head_dim) ** -0.5
    assert index.w.dtype == torch.float32
    torch.testing.assert_close(index.w.double(), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- trap 4


def latent_attention_of_the_paper(
    layer: LatentAttention, x: Tensor, angles: Tensor, stretch: float, scale: float
) -> Tensor:
    """DeepSeek-V2, equations 37 to 47, head by head in float64; `angles [T, P/2]`, `stretch` YaRN's factor on RoPE."""
    config = layer.config
    H, R = config.num_attention_heads, config.kv_lora_rank
    N, P, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        return y / (y.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def rope(y: Tensor) -> Tensor:
        pairs = torch.view_as_complex(y.reshape(-1, P // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.full_like(angles, stretch), angles)).flatten(1)

    c_query = norm(x @ layer.q_a_proj.weight.T, layer.q_a_layernorm.weight)
    compressed = x @ layer.kv_a_proj_with_mqa.weight.T
    c_kv, k_rope = norm(compressed[:, :R], layer.kv_a_layernorm.weight), rope(compressed[:, R:])
    unseen = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    heads = []
    for h in range(H):
        q = c_query @ layer.q_b_proj.weight[h * (N + P) : (h + 1) * (N + P)].T
        kv = c_kv @ layer.kv_b_proj.weight[h * (N + V) : (h + 1) * (N + V)].T
        logits = scale * (q[:, :N] @ kv[:, :N].T + rope(q[:, N:]) @ k_rope.T)
        heads.append(logits.masked_fill(unseen, -math.inf).softmax(-1) @ kv[:, N:])
    return torch.cat(heads, dim=-1) @ layer.o_proj.weight.T


@pytest.mark.parametrize("absorbed", [False, True], ids=["expanded", "absorbed"])
@pytest.mark.parametrize("yarn", [False, True], ids=["plain", "yarn"])
@torch.no_grad()
def test_trap_4_the_softmax_scale_is_of_plain_and_rope_width_and_yarn_multiplies_it_by_mscale_squared(yarn, absorbed):
    T = 20
    config = tiny(index_topk=None, rope_scaling=YARN if yarn else None)
    layer = build(config).model.layers[1].self_attn
    x = 3 * inputs(config, T, torch.float64)[0]  # sharp attention: a wrong scale shows
    rope = {"rope_type": "yarn" if yarn else "default", "rope_theta": config.rope_theta, **(vars(YARN) if yarn else {})}
    theirs = DeepseekV32RotaryEmbedding(
        DeepseekV32Config(qk_rope_head_dim=config.qk_rope_head_dim, rope_parameters=rope)
    )
    angles = torch.arange(T, dtype=torch.float64)[:, None] * theirs.inv_freq.double()
    mscale = 0.1 * YARN.mscale_all_dim * math.log(YARN.factor) + 1 if yarn else 1.0
    scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5 * mscale**2
    expected = latent_attention_of_the_paper(layer, x[0], angles, theirs.attention_scaling, scale)

    positions = torch.arange(T)[None]
    last = positions.to(torch.int32)
    turn = Rotation(positions, config.rope_head_dim, config)
    context = Context("dense", torch.zeros_like(last), last, turn, None, None, None)
    ours, _, _ = layer(x, context, None, absorbed=absorbed)
    torch.testing.assert_close(ours[0], expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- trap 7

DOCUMENTS = (13, 1, 40, 26)


def packed(documents: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All documents in one row, and where each token's own begins."""
    starts = [0]
    for document in documents:
        starts.append(starts[-1] + len(document))
    first = torch.cat([torch.full((len(d),), start) for start, d in zip(starts, documents, strict=False)])
    return torch.cat(documents)[None], first[None].to(torch.int32)


@BOTH
@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
@torch.no_grad()
def test_trap_7_packed_documents_give_the_logits_and_the_index_loss_of_unpacked_ones(attention, stage):
    model = build(tiny(attention=attention))
    documents = [tokens(length, seed=length) for length in DOCUMENTS]
    ids, first = packed(documents)
    logits, losses = model(ids, first=first, stage=stage, output_index_loss=True)
    alone = [model(document[None], stage=stage, output_index_loss=True) for document in documents]
    torch.testing.assert_close(logits, torch.cat([each for each, _ in alone], dim=1), rtol=1e-9, atol=1e-9)
    queries = torch.tensor(DOCUMENTS, dtype=torch.float64)
    mean = (torch.stack([loss for _, loss in alone]) * queries[:, None]).sum(0) / queries.sum()
    torch.testing.assert_close(losses, mean, rtol=1e-9, atol=1e-12)
    unmarked = model(ids, stage=stage)
    assert (unmarked - logits).abs().max() > 0.1  # the boundaries do matter


@BOTH
@torch.no_grad()
def test_trap_7_no_query_selects_across_a_boundary(attention):
    model = build(tiny(attention=attention))
    ids, first = packed([tokens(length, seed=length) for length in DOCUMENTS])
    for layer in observed(model, ids, first=first):
        chosen = layer.result.indices
        assert ((chosen == -1) | (chosen >= first[..., None])).all()
        inside = torch.arange(ids.shape[1]) - first + 1
        assert torch.equal((chosen >= 0).sum(-1), inside.clamp(max=model.config.index_topk))


# ------------------------------------------------------------------------------------------------------------- trap 9

SHARING = ("full", "shared", "full", "shared", "shared")


def sharing(attention: str = "mla", **changes: Any) -> ModelConfig:
    return tiny(num_hidden_layers=len(SHARING), indexer_types=SHARING, attention=attention, **changes)


@BOTH
@torch.no_grad()
def test_trap_9_a_shared_layer_attends_to_the_selection_of_the_full_layer_before_it(attention):
    model = build(sharing(attention))
    assert {name.split(".")[2] for name, _ in model.named_parameters() if is_indexer(name)} == {"0", "2"}
    ids = tokens(2, 40)
    cached = [observed(model, piece, cache=cache) for cache in [Cache(2, 40)] for piece in ids.split(17, dim=1)][-1]
    for layers in (observed(model, ids), cached):
        chosen = [layer.result.indices for layer in layers]
        assert torch.equal(chosen[1], chosen[0])
        assert torch.equal(chosen[3], chosen[2]) and torch.equal(chosen[4], chosen[2])
        assert not torch.equal(chosen[2], chosen[0])


@BOTH
@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
def test_trap_9_a_shared_layers_loss_teaches_the_full_layers_indexer(attention, stage):
    model = build(sharing(attention))
    _, losses = model(tokens(2, 30), stage=stage, output_index_loss=True)
    names = [name for name, _ in model.named_parameters()]
    for layer, teaches in enumerate((0, 0, 2, 2, 2)):
        gradients = torch.autograd.grad(losses[layer], model.parameters(), retain_graph=True, allow_unused=True)
        moved = {name for name, g in zip(names, gradients, strict=True) if g is not None and g.abs().max() > 0}
        assert moved == {name for name in names if name.startswith(f"model.layers.{teaches}.self_attn.indexer.")}


@BOTH
def test_trap_9_the_full_layers_indexer_learns_from_the_mean_of_the_layers_it_serves(attention):
    """KL(mean of the layers' attention || softmax of the scores), written out densely, has the same gradient."""
    model = build(sharing(attention))
    seen: list[Observation] = []
    _, losses = model(tokens(2, 30), stage="warmup", output_index_loss=True, observe=seen.append)
    weights = torch.tensor(model.config.index_loss_weights(), dtype=torch.float64)
    assert torch.allclose(weights, torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    indexer = [parameter for name, parameter in model.named_parameters() if is_indexer(name)]
    ours = torch.autograd.grad((losses * weights).sum(), indexer, retain_graph=True)

    hidden = torch.ones(30, 30, dtype=torch.bool).triu(1)
    expected = 0.0
    for source, served in ((0, seen[:2]), (2, seen[2:])):
        targets = []
        for layer in served:
            k = layer.k.repeat_interleave(layer.q.shape[2] // layer.k.shape[2], 2)
            scores = torch.einsum("bthd,bshd->bhts", layer.q, k) * layer.scale
            targets.append(scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(1).detach())
        target = torch.stack(targets).mean(0)
        index = seen[source].index
        products = torch.einsum("btic,bsc->btis", index.q, index.k).relu()
        scores = torch.einsum("btis,bti->bts", products, index.w).masked_fill(hidden, -torch.inf)
        logs = scores.log_softmax(-1).masked_fill(hidden, 0.0)
        expected = expected - (target * logs).sum(-1).mean()
    for mine, theirs in zip(ours, torch.autograd.grad(expected, indexer), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-8, atol=1e-12)


@torch.no_grad()
def test_trap_9_sharing_survives_a_checkpoint(tmp_path):
    model = build(sharing(), dtype=torch.float32)
    model.save(tmp_path / "model")
    loaded = inazuma.load(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(2, 40)), model(tokens(2, 40)))


@pytest.mark.parametrize(
    "field",
    [
        {"index_topk_freq": 4},
        {"index_topk_freq": 4, "index_skip_topk_offset": 1},
        {"index_topk_pattern": "FSF"},
        {"indexer_types": ["full", "shared", "full"]},
        {"indexer_rope_interleave": True},
    ],
    ids=lambda field: next(iter(field)),
)
def test_trap_9_a_deepseek_configuration_with_shared_layers_is_refused_by_name(field, tmp_path):
    model = build(tiny(), dtype=torch.float32)
    model.save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    hf = json.loads(file.read_text())
    assert hf["model_type"] == "deepseek_v32"
    file.write_text(json.dumps(hf | field))
    with pytest.raises(UserError, match=next(iter(field))) as error:
        inazuma.load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_trap_9_a_family_that_cannot_say_it_does_not_write_it():
    for config in (sharing(), tiny(rope_interleave=False), tiny(attention="gqa")):
        assert families.writer(config).write(config)["model_type"] == "inazuma"
    assert families.writer(tiny()).write(tiny())["model_type"] == "deepseek_v32"
    interleaved = tiny(indexer_rope_interleave=True)
    assert families.writer(interleaved).write(interleaved)["model_type"] == "glm_moe_dsa"
    assert families.writer(tiny(index_topk=None)).write(tiny(index_topk=None))["model_type"] == "deepseek_v3"
