"""transformers' own models with our operators: the same as they are without, only sparse, and their indexers learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
    Trainer,
    TrainingArguments,
)

import inazuma.integrations.transformers as it
from inazuma.errors import UserError
from tests.model.tiny import VOCABULARY, is_indexer, randomise_norms, tokens

TOPK = 12
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 36, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 14, "index_topk": TOPK, "index_n_heads": 32, "index_head_dim": 18,
    "max_position_embeddings": 256, "eos_token_id": None, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 2,
}  # fmt: skip
"""With this many index heads no score is exactly zero, so none tie: transformers' topk breaks ties arbitrarily."""

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "mscale": 0.7, "mscale_all_dim": 1.2,
}  # fmt: skip
ODD = {"hidden_size": 33, "num_attention_heads": 3, "num_key_value_heads": 3, "kv_lora_rank": 17, "v_head_dim": 7}
ODD |= {"first_k_dense_replace": 4}  # the experts' grouped products take no odd widths
SHARED = {"indexer_types": ["full", "shared", "full", "shared"]}
CASES = {
    "deepseek": (DeepseekV32Config, {}),
    "deepseek-odd": (DeepseekV32Config, ODD),
    "deepseek-yarn": (DeepseekV32Config, {"rope_parameters": YARN, "attention_bias": True}),
    "glm": (GlmMoeDsaConfig, {"indexer_types": ["full"] * 4}),
    "glm-shared": (GlmMoeDsaConfig, SHARED),
    "glm-shared-odd": (GlmMoeDsaConfig, ODD | {"indexer_types": ["full", "shared", "shared", "shared"]}),
}
MODELS = {DeepseekV32Config: DeepseekV32ForCausalLM, GlmMoeDsaConfig: GlmMoeDsaForCausalLM}


@pytest.fixture(autouse=True)
def enabled():
    it.enable()
    yield
    it.disable()


def both(case: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[nn.Module, nn.Module]:
    """A model of random weights as transformers runs it, and a copy as we do."""
    kind, own = CASES[case]
    config = kind(**SIZES | own | changes)
    theirs = MODELS[kind]._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    randomise_norms(theirs, seed)
    theirs = theirs.to(dtype).eval()
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation("inazuma")
    assert theirs.config._attn_implementation == "sdpa"
    return theirs, ours


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    assert theirs.std() > 0.1  # near zero anything would agree
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


# ---------------------------------------------------------------------------------------------------------------------
# The same as without
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_logits(case, seed):
    theirs, ours = both(case, seed)
    for length in (1, TOPK - 1, TOPK, TOPK + 1, 67):
        ids = tokens(2, length, seed=seed)
        for use_cache in (False, True):
            assert_same(ours(ids, use_cache=use_cache).logits, theirs(ids, use_cache=use_cache).logits)


@torch.no_grad()
def test_the_comparison_notices_a_wrong_indexer():
    theirs, ours = both("deepseek")
    for name, parameter in ours.named_parameters():
        if name.endswith("k_norm.bias"):
            parameter.neg_()
    assert (ours(tokens(2, 67)).logits - theirs(tokens(2, 67)).logits).abs().max() > 1e-2


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
@torch.no_grad()
def test_logits_in_bfloat16(case):
    # A rounding may tip a selection, and a token selected otherwise moves its row's logits; most rows must agree.
    theirs, ours = both(case, dtype=torch.bfloat16)
    ids = tokens(2, 67)
    expected = theirs(ids).logits.float()
    worst = (ours(ids).logits.float() - expected).abs().amax(-1) / expected.abs().max()
    assert worst.median() < 0.03
    below = tokens(2, TOPK)  # all are selected: only rounding remains
    assert_same(ours(below).logits.float(), theirs(below).logits.float(), 0.05)


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_padding(case, side):
    theirs, ours = both(case)
    length, lengths = 50, [50, 31, 7]
    ids, mask = tokens(3, length), torch.zeros(3, length, dtype=torch.long)
    for row, n in enumerate(lengths):
        start = {"left": length - n, "right": 0, "both": (length - n) // 2}[side]
        mask[row, start : start + n] = 1
    seen = mask.cumsum(1) > 0  # padding behind the tokens sees them, and only them; padding before sees nothing
    got, expected = (model(ids, attention_mask=mask).logits[seen] for model in (ours, theirs))
    assert_same(got, expected)


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_prefill_in_chunks_and_decoding_from_a_cache(case, static):
    theirs, ours = both(case)
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, :9] = 0
    caches = [StaticCache(config=model.config, max_cache_len=64) if static else None for model in (theirs, ours)]
    start = 0
    for end in (20, 45, 58, 59, 60):
        inputs = {"attention_mask": mask[:, :end], "use_cache": True}
        outs = []
        for place, model in enumerate((theirs, ours)):
            out = model(ids[:, start:end], past_key_values=caches[place], **inputs)
            caches[place] = out.past_key_values
            outs.append(out.logits[mask[:, start:end].bool()])
        assert_same(outs[1], outs[0])
        start = end


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
@torch.no_grad()
def test_packed_sequences(case):
    theirs, ours = both(case)
    ids = tokens(2, 60)
    positions = torch.stack(
        [
            torch.cat([torch.arange(25), torch.arange(3), torch.arange(32)]),
            torch.cat([torch.arange(1), torch.arange(40), torch.arange(19)]),
        ]
    )
    packed = [model(ids, position_ids=positions, use_cache=False).logits for model in (ours, theirs)]
    assert_same(*packed)
    alone = ours(ids[:1, 28:], use_cache=False).logits
    assert_same(packed[0][:1, 28:], alone)


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
def test_generate(case):
    theirs, ours = both(case)
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, :6] = 0
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}):
        options |= {"attention_mask": mask, "max_new_tokens": 25, "do_sample": False, "pad_token_id": 0}
        written = ours.generate(ids, **options)
        assert torch.equal(written, theirs.generate(ids, **options))
    assert len(set(written[0, 20:].tolist())) > 5  # not one token over and over


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
@pytest.mark.parametrize("length", [TOPK, 40])
def test_gradients_of_the_language_model_loss(case, length):
    pairs = both(case)
    ids = tokens(2, length)
    for model in pairs:
        model.train()
        model(ids, labels=ids).loss.backward()
    theirs, ours = (dict(model.named_parameters()) for model in pairs)
    for name, parameter in theirs.items():
        if is_indexer(name):
            assert parameter.grad is None and ours[name].grad is None
        elif parameter.grad is not None:
            difference = (ours[name].grad - parameter.grad).abs().max()
            assert difference <= 1e-4 * parameter.grad.abs().max() + 1e-7, name


class _Adapter(nn.Linear):
    """A linear layer that does more than multiply by its weight, as adapters do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.3 * x.mean(-1, keepdim=True)


@torch.no_grad()
def test_what_is_added_to_the_expanding_layer_counts():
    theirs, ours = both("deepseek")
    plain = ours(tokens(2, 40)).logits
    for model in (theirs, ours):
        for layer in model.model.layers:
            layer.self_attn.kv_b_proj.__class__ = _Adapter
    adapted = ours(tokens(2, 40)).logits
    assert_same(adapted, theirs(tokens(2, 40)).logits)
    assert (adapted - plain).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------------------------------
# Only sparse
# ---------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        sizes = [x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
def test_no_tensor_of_queries_by_keys(case):
    length = 1536
    theirs, ours = both(case)
    ids = tokens(1, length)
    with Largest() as without, torch.no_grad():
        theirs(ids[:, :256])
    assert without.elements >= 256 * 256
    ours.train()
    with Largest() as largest:
        loss = ours(ids, labels=ids).loss
        (loss + it.index_loss(ours)).backward()
    # The largest that is made has one row a token (logits, and the index heads' queries, 32 x 18 wide).
    assert largest.elements <= length * 32 * 18 < length * length


# ---------------------------------------------------------------------------------------------------------------------
# The indexer learns
# ---------------------------------------------------------------------------------------------------------------------


def dense_index_losses(model: nn.Module, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """KL(target || softmax(scores)) of each layer to its indexer, from the definition, on transformers' own tensors."""
    seen: dict[int, dict[str, Any]] = {}
    hooks = []
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn

        def keep(module, args, kwargs, output, number=number):
            seen[number] = {"x": kwargs["hidden_states"].detach(), "rope": kwargs["position_embeddings"]}

        hooks.append(attention.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    T = ids.shape[1]
    visible = torch.ones(T, T, dtype=torch.bool).tril() & mask[:, None].bool()
    family = next(family for family in it.FAMILIES if isinstance(model.model.layers[0].self_attn, family.attention))
    losses = []
    for number, layer in enumerate(model.model.layers):
        attention, x, (cos, sin) = layer.self_attn, seen[number]["x"], seen[number]["rope"]
        N, P, R = attention.qk_nope_head_dim, attention.qk_rope_head_dim, attention.kv_lora_rank
        with torch.no_grad():
            query = attention.q_a_layernorm(attention.q_a_proj(x))
            q = attention.q_b_proj(query).unflatten(-1, (-1, N + P)).transpose(1, 2)
            latent, k_rope = attention.kv_a_proj_with_mqa(x).split([R, P], -1)
            q_rope, k_rope = family.rotate(q[..., N:], k_rope[:, None], cos, sin)
            k_nope = attention.kv_b_proj(attention.kv_a_layernorm(latent))
            k_nope = k_nope.unflatten(-1, (-1, N + attention.v_head_dim))[..., :N].transpose(1, 2)
            products = q[..., :N] @ k_nope.mT + q_rope @ k_rope.mT
        if attention.indexer is not None:
            indexer = attention.indexer
            iq = indexer.wq_b(query).unflatten(-1, (indexer.n_heads, indexer.head_dim))
            ik = indexer.k_norm(indexer.wk(x))[:, :, None]
            iq_rope, ik_rope = family.rotate_index(iq[..., :P], ik[..., :P], cos, sin, unsqueeze_dim=2)
            iq, ik = torch.cat([iq_rope, iq[..., P:]], -1), torch.cat([ik_rope, ik[..., P:]], -1)[:, :, 0]
            scores = torch.einsum("btic,bsc->btsi", iq, ik).mul(indexer.head_dim**-0.5).relu()
            scores = (scores @ (indexer.weights_proj(x) * indexer.n_heads**-0.5)[..., None])[..., 0]
            scores = scores.masked_fill(~visible, -torch.inf)
            chosen = scores.topk(min(TOPK, T), dim=-1).indices
            kept = visible & torch.zeros_like(visible).scatter(-1, chosen, True)
        hidden = ~kept
        target = (products * attention.scaling).masked_fill(hidden[:, None], -torch.inf).softmax(-1).mean(1)
        logs = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
        kl = torch.where(kept, torch.xlogy(target, target) - target * logs.masked_fill(hidden, 0), 0).sum(-1)
        losses.append(kl[mask.bool()].mean())
    return losses


@pytest.mark.parametrize(
    ("case", "groups"), [("deepseek", [[0], [1], [2], [3]]), ("glm-shared", [[0, 1], [2, 3]])], ids=str
)
@pytest.mark.parametrize("length", [TOPK, 40])
def test_index_loss_is_its_definition_and_reaches_only_indexers(case, groups, length):
    theirs, ours = both(case)
    ids, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    mask[1, length - 5 :] = 0
    losses = dense_index_losses(theirs, ids, mask)
    expected = sum(torch.stack([losses[i] for i in group]).mean() for group in groups)
    expected.backward()
    ours.train()
    ours(ids, attention_mask=mask)
    loss = it.index_loss(ours)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None) == is_indexer(name)
        if is_indexer(name):
            wanted = reference[name].grad
            assert wanted.abs().max() > 0
            assert (parameter.grad - wanted).abs().max() <= 1e-3 * wanted.abs().max(), name


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
def test_gradient_checkpointing(case):
    _, plain = both(case)
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = tokens(2, 40)
    for model in (plain, checkpointed):
        model.train()
        loss = model(ids, labels=ids, use_cache=False).loss
        (loss + it.index_loss(model)).backward()
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=name)
    with pytest.raises(UserError, match="there is none"):  # what the backward pass computed again does not count
        it.index_loss(checkpointed)


def test_reentrant_checkpointing_and_passes_without_gradients_have_no_index_loss():
    _, ours = both("deepseek")
    ours.eval()(tokens(2, 40))
    with pytest.raises(UserError, match="training mode"):
        it.index_loss(ours)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    ours.train()(tokens(2, 40), use_cache=False)
    with pytest.raises(UserError, match="use_reentrant=True"):
        it.index_loss(ours)


def test_indexers_that_do_not_learn_have_no_loss():
    _, ours = both("glm-shared")
    for name, parameter in ours.named_parameters():
        if is_indexer(name):
            parameter.requires_grad_(False)
    ours.train()(tokens(2, 40))
    with pytest.raises(UserError, match="indexers that require them"):
        it.index_loss(ours)


def test_a_model_that_learns_can_be_copied():
    _, ours = both("deepseek")
    ours.train()(tokens(2, 40))
    copy.deepcopy(ours)


class SparseTrainer(Trainer):
    """As the documentation of the module has it."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            loss = loss + it.index_loss(model) / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("case", ["deepseek", "glm-shared"])
def test_with_the_trainer_the_indexers_learn(case, tmp_path):
    pytest.importorskip("accelerate")
    theirs, ours = both(case)
    rows = [{"input_ids": row, "labels": row} for row in tokens(4, 40)]
    ids = torch.stack([row["input_ids"] for row in rows])

    def index_loss(model: nn.Module) -> float:
        with torch.random.fork_rng():
            model.train()(ids)
            return it.index_loss(model).item()

    before = index_loss(ours)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 15}
    options |= {"learning_rate": 3e-3, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    trainer = SparseTrainer(ours, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    # Only the indexers: that the loss falls is then theirs.
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(is_indexer(name))
    trainer.train()
    assert index_loss(ours) < 0.8 * before
    assert all(
        torch.equal(parameter, dict(theirs.named_parameters())[name]) != is_indexer(name)
        for name, parameter in ours.named_parameters()
    )


# ---------------------------------------------------------------------------------------------------------------------
# On, off, and what is refused
# ---------------------------------------------------------------------------------------------------------------------


def test_what_takes_inazuma_and_what_does_not(tmp_path):
    config = DeepseekV32Config(**SIZES)
    it.enable()  # again does nothing more
    assert DeepseekV32ForCausalLM(config).config._attn_implementation == "inazuma"
    DeepseekV32ForCausalLM(config).save_pretrained(tmp_path)
    for asked, taken in ((None, "inazuma"), ("inazuma", "inazuma"), ("sdpa", "sdpa"), ("eager", "eager")):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=asked)
        assert loaded.config._attn_implementation == taken
    llama = LlamaForCausalLM(LlamaConfig(**{name: SIZES[name] for name in list(SIZES)[:6]}))
    assert llama.config._attn_implementation == "sdpa"
    llama(tokens(1, 5))


def test_disable_restores_everything():
    _, ours = both("deepseek")
    patched = [(family.attention, family.attention.forward) for family in it.FAMILIES]
    it.disable()
    for owner, forward in patched:
        assert owner.forward is forward.__wrapped__
    assert all("get_correct_attn_implementation" not in vars(family.pretrained) for family in it.FAMILIES)
    assert DeepseekV32ForCausalLM(DeepseekV32Config(**SIZES)).config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="enable"):
        ours(tokens(1, 5))
    with pytest.raises(ValueError, match="attn_implementation"):
        DeepseekV32ForCausalLM._from_config(DeepseekV32Config(**SIZES), attn_implementation="inazuma")
    it.enable()
    ours(tokens(1, 5))


def test_other_models_are_refused():
    config = LlamaConfig(**{name: SIZES[name] for name in list(SIZES)[:6]})
    llama = LlamaForCausalLM._from_config(config, attn_implementation="inazuma")
    with pytest.raises(UserError, match="not llama"):
        llama(tokens(1, 5))


@pytest.mark.parametrize(
    ("changes", "inputs", "message"),
    [
        ({}, {"attention_mask": torch.ones(1, 1, 20, 20, dtype=torch.bool)}, "attention_mask"),
        ({}, {"attention_mask": torch.tensor([[1] * 5 + [0] * 5 + [1] * 10])}, "padding between tokens"),
        ({}, {"output_attentions": True}, "output_attentions"),
        ({"attention_dropout": 0.1}, {}, "attention_dropout"),
        ({"is_causal": False}, {}, "is_causal"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(changes, inputs, message):
    _, ours = both("deepseek", **changes)
    with pytest.raises(UserError, match=message):
        ours.train()(tokens(1, 20), **inputs)
