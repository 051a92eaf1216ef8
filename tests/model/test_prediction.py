"""Multi-token prediction: the same layer as transformers', kept in checkpoints, and text that it does not change."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

import inazuma
from inazuma.errors import UserError
from inazuma.model import Cache, ModelConfig, Transformer, families
from inazuma.model.generate import sample
from inazuma.model.prediction import Acceptance, Drafter
from tests.model.tiny import VOCABULARY, build, tiny, tokens

EXPERTS = {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1}
# With this many index heads no score is exactly zero: transformers breaks ties arbitrarily.
UNTIED = {"index_n_heads": 32}
GLM = {"attention": "gqa", "rope_interleave": False, "index_topk": None, "partial_rotary_factor": 0.5}
KINDS = {
    "deepseek_v32": EXPERTS | UNTIED,
    "glm_moe_dsa": EXPERTS | UNTIED | {"indexer_rope_interleave": True},
    "glm_moe_dsa-shared": UNTIED | {"indexer_rope_interleave": True, "indexer_types": ("full", "shared", "shared")},
    "deepseek_v3": EXPERTS | {"index_topk": None},
    "deepseek_v3-dense": {"index_topk": None},
    "deepseek_v3-dense-with-experts-behind": EXPERTS | {"index_topk": None, "first_k_dense_replace": 3},
    "glm4_moe": EXPERTS | GLM,
    "glm4_moe_lite": EXPERTS | {"index_topk": None, "model_type": "glm4_moe_lite"},
    "inazuma-gqa": {"attention": "gqa"},
    "glm4_moe-dense": {"attention": "gqa", "rope_interleave": False, "index_topk": None},
    "inazuma-dense": {"attention": "gqa", "index_topk": None},
}
LENGTH = 40


def made(name: str, depths: int = 1, dtype: torch.dtype = torch.float64, **changes: Any) -> Transformer:
    return build(tiny(num_nextn_predict_layers=depths, **KINDS[name] | changes), dtype=dtype)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    assert b.std() > 0.05  # near zero anything would agree
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


# ------------------------------------------------------------------------------------------- the layer, by transformers


@pytest.mark.parametrize("depths", [1, 2])
@pytest.mark.parametrize(
    ("name", "witness"),
    [
        ("deepseek_v3", transformers.DeepseekV3ForCausalLM),
        ("deepseek_v3-dense-with-experts-behind", transformers.DeepseekV3ForCausalLM),
        ("glm4_moe", transformers.Glm4MoeForCausalLM),
    ],
)
@torch.no_grad()
def test_predictions_are_those_of_their_mtp_model(name, witness, depths, tmp_path, monkeypatch):
    ours = made(name, depths, torch.float32)
    ours.save(tmp_path / "model")
    layers = range(ours.config.num_hidden_layers, ours.config.num_hidden_layers + depths)
    # They know these layers by the numbers that they have in the published models.
    monkeypatch.setattr(witness, "_keys_to_ignore_on_load_unexpected", [rf"model\.layers\.{i}.*" for i in layers])
    theirs, info = witness.from_pretrained(tmp_path / "model", output_loading_info=True, experts_implementation="eager")
    assert not any(info.values()), info
    ids = tokens(2, LENGTH)
    logits, predictions = ours(ids, output_predictions=True)
    close(logits, theirs(ids).logits, 1e-4)
    close(logits, ours(ids), 1e-6)
    assert len(predictions) == depths

    ahead = MtpModel.from_pretrained(theirs).eval()
    cache, hidden = MtpCache(config=theirs.config.get_mtp_config()), theirs.model(ids).last_hidden_state
    for depth, mine in enumerate(predictions, 1):
        there = slice(depth, None)
        positions = torch.arange(depth, LENGTH)[None]
        hidden = ahead.forward_layer(depth - 1, hidden[:, : LENGTH - depth], positions, cache, input_ids=ids[:, there])
        close(mine[:, : LENGTH - depth], theirs.lm_head(hidden), 1e-4)


@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa", "glm_moe_dsa-shared"])
@torch.no_grad()
def test_sparse_predictions_are_those_of_their_layer(name, tmp_path):
    """Their model of one layer, the MTP layer's, reads what equation 21 makes; its last norm is `shared_head.norm`."""
    ours = made(name, 1, torch.float32)
    changes = {"num_hidden_layers": 1, "num_nextn_predict_layers": 0, "indexer_types": None}
    if ours.config.n_routed_experts:
        changes["first_k_dense_replace"] = 0
    alone = Transformer(ModelConfig(**{**vars(ours.config), **changes}))
    behind = f"model.layers.{ours.config.num_hidden_layers}."
    weights = {k: v for k, v in ours.state_dict().items() if not k.startswith("model.layers.")}
    weights |= {k.replace(behind, "model.layers.0."): v for k, v in ours.state_dict().items() if k.startswith(behind)}
    weights["model.norm.weight"] = weights.pop("model.layers.0.shared_head.norm.weight")
    enorm, hnorm, project = (weights.pop(f"model.layers.0.{x}.weight") for x in ("enorm", "hnorm", "eh_proj"))
    alone.load_state_dict(weights)
    alone.save(tmp_path / "alone")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "alone", experts_implementation="eager")
    assert name.startswith(theirs.config.model_type)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + ours.config.rms_norm_eps).sqrt() * weight

    ids = tokens(2, LENGTH)
    hidden, _, _ = ours.read(ids)
    close(ours.lm_head(hidden), ours(ids), 1e-6)
    joined = torch.cat([norm(ours.model.embed_tokens(ids[:, 1:]), enorm), norm(hidden[:, :-1], hnorm)], dim=-1)
    _, [mine] = ours(ids, output_predictions=True)
    close(mine[:, :-1], theirs.eval()(inputs_embeds=joined @ project.T).logits, 1e-4)


@pytest.mark.parametrize("name", ["deepseek_v32", "glm4_moe"])
@torch.no_grad()
def test_no_prediction_sees_another_document(name):
    model = made(name, 2)
    ids, first = tokens(1, LENGTH), torch.tensor([[0] * 17 + [17] * (LENGTH - 17)], dtype=torch.int32)
    _, packed = model(ids, first=first, output_predictions=True)
    for start, stop in ((0, 17), (17, LENGTH)):
        _, alone = model(ids[:, start:stop], output_predictions=True)
        for depth, (mine, expected) in enumerate(zip(packed, alone, strict=True), 1):
            close(mine[:, start : stop - depth], expected[:, : stop - start - depth])


def test_index_losses_of_these_layers_follow_the_others():
    model, ids = made("glm_moe_dsa-shared", 2), tokens(2, LENGTH)
    _, losses, predictions = model(ids, stage="sparse", output_index_loss=True, output_predictions=True)
    assert len(losses) == 5 and len(predictions) == 2 and (losses > 0).all()
    _, fewer = model(ids, stage="sparse", output_index_loss=True)
    torch.testing.assert_close(losses[:3], fewer, rtol=0, atol=0)
    losses[4].backward()
    moved = {name for name, x in model.named_parameters() if x.grad is not None and x.grad.any()}
    assert moved and all(name.startswith("model.layers.4.self_attn.indexer.") for name in moved)
    with pytest.raises(UserError, match="output_predictions"):
        model(ids, cache=Cache(2, LENGTH), output_predictions=True)


def test_the_model_itself_begins_with_the_weights_it_had_without():
    without = Transformer(tiny()).init_weights(3).state_dict()
    with_them = Transformer(tiny(num_nextn_predict_layers=1)).init_weights(3).state_dict()
    assert without.keys() < with_them.keys()
    assert all(torch.equal(with_them[name], x) for name, x in without.items())


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("depths", [1, 2])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_layers_are_kept(name, depths, tmp_path):
    model = made(name, depths, torch.float32)
    model.save(tmp_path / "model")
    hf = json.loads((tmp_path / "model/config.json").read_text())
    assert hf["model_type"] == name.split("-")[0] and hf["num_nextn_predict_layers"] == depths
    loaded = inazuma.load(tmp_path / "model")
    assert loaded.config == model.config
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], before[key]) for key in before)
    if hf["model_type"] != "inazuma":
        other = {key: value for key, value in hf.items() if key != "num_nextn_predict_layers"}
        assert families.read(other | {"num_mtp_layers": depths}) == model.config
    # The names of the published checkpoints.
    weights, last = load_file(tmp_path / "model/model.safetensors"), 2 + depths
    for part in ("enorm", "hnorm", "shared_head.norm"):
        assert weights[f"model.layers.{last}.{part}.weight"].shape == (40,)
    assert weights[f"model.layers.{last}.eh_proj.weight"].shape == (40, 80)
    assert torch.equal(weights[f"model.layers.{last}.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(weights[f"model.layers.{last}.shared_head.head.weight"], weights["lm_head.weight"])
    experts = f"model.layers.{last}.mlp.experts.0.up_proj.weight" in weights
    assert experts == bool(model.config.n_routed_experts)
    indexer = f"model.layers.{last}.self_attn.indexer.wk.weight" in weights
    assert indexer == (model.config.index_topk is not None)


@pytest.fixture
def saved(tmp_path) -> Path:
    made("deepseek_v3", dtype=torch.float32, tie_word_embeddings=True).save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("copy", ["embed_tokens.weight", "shared_head.head.weight"])
def test_copies_may_be_missing_but_not_differ(copy, saved):
    expected, name = inazuma.load(saved)(tokens(1, 9)), f"model.layers.3.{copy}"
    rewrite(saved, lambda weights: weights[name][0, 0].add_(1))
    with pytest.raises(UserError, match=rf"{name} differs from .*weight".replace(".", r"\.", 3)):
        inazuma.load(saved)
    rewrite(saved, lambda weights: weights.pop(name))
    assert torch.equal(inazuma.load(saved)(tokens(1, 9)), expected)


def test_layers_that_are_counted_but_not_there_are_none(saved):
    expected = inazuma.load(saved)(tokens(1, 9))
    behind = [name for name in load_file(saved / "model.safetensors") if name.startswith("model.layers.3.")]
    rewrite(saved, lambda weights: weights.pop(behind[0]))
    if not behind[0].endswith(("embed_tokens.weight", "shared_head.head.weight")):
        with pytest.raises(UserError, match=f"lacks {behind[0]}"):
            inazuma.load(saved)
    rewrite(saved, lambda weights: [weights.pop(name) for name in behind[1:]])
    loaded = inazuma.load(saved)
    assert loaded.config.num_nextn_predict_layers == 0
    assert torch.equal(loaded(tokens(1, 9)), expected)


def test_what_no_family_says_is_refused_or_ours():
    gqa = {"attention": "gqa", "rope_interleave": False, "index_topk": None}
    for name, changes in (("llama", {}), ("qwen3", {"use_qk_norm": True})):
        assert families.writer(tiny(**gqa, **changes)).model_type == name
        with pytest.raises(UserError, match=f"'{name}' cannot express this model"):
            families.writer(tiny(**gqa, **changes, num_nextn_predict_layers=1, model_type=name))
    with pytest.raises(UserError, match="num_nextn_predict_layers: must be at least 0"):
        tiny(num_nextn_predict_layers=-1)
    hf = families.writer(tiny(num_nextn_predict_layers=1)).write(tiny(num_nextn_predict_layers=1))
    with pytest.raises(UserError, match=r"num_nextn_predict_layers: expected a whole number, got 'one'"):
        families.read(hf | {"num_nextn_predict_layers": "one"})
    with pytest.raises(UserError, match="mtp_mlp_layer_types"):
        families.read(hf | {"mtp_mlp_layer_types": ["sparse"]})


# ------------------------------------------------------------------------------------------------------------- drafting

NEW = 13
PROMPTS = [tokens(length, seed=length).tolist() for length in (4, 15, 3)]
SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 3}
EVERY = pytest.mark.parametrize(
    ("name", "depths"),
    [("deepseek_v32", 1), ("glm_moe_dsa-shared", 2), ("glm4_moe", 3)],
)
TWO = pytest.mark.parametrize(("name", "depths"), [("deepseek_v32", 1), ("glm4_moe", 3)])
HOW = pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])


@functools.cache
def without_guesses(name: str, depths: int, **options: Any) -> list[list[int]]:
    return made(name, depths).generate(PROMPTS, NEW, speculative=False, **options)


@torch.no_grad()
def token_by_token(model: Transformer, place: int, temperature=0.0, top_k=None, top_p=1.0, seed=0) -> list[int]:
    """A prompt's text without cache, guesses or batch; the n-th token by the n-th number of the row's generator."""
    row, generator = list(PROMPTS[place]), torch.Generator().manual_seed(seed * 1_000_003 + place)
    for _ in range(NEW):
        logits = model(torch.tensor([row]))[:, -1]
        uniform = torch.rand(1, generator=generator, dtype=torch.double)
        row.append(int(sample(logits, uniform, temperature, top_k, top_p)))
    return row


def guess_instead(monkeypatch, wanted: list[list[int]], *right: float, seed: int = 0) -> None:
    """Guesses as often right, token by token, as `right` says (one for all rows, or one a row)."""
    real, generator = Drafter.draft, torch.Generator().manual_seed(seed)

    def draft(self, hidden, known, draw):
        guesses = real(self, hidden, known, draw)
        for row, at in enumerate(known.tolist()):
            for i in range(guesses.shape[1]):
                truth = wanted[row][at + i] if at + i < len(wanted[row]) else 0
                hit = torch.rand((), generator=generator) < right[row % len(right)]
                guesses[row, i] = truth if hit else (truth + 1) % VOCABULARY
        return guesses

    monkeypatch.setattr(Drafter, "draft", draft)


@EVERY
@HOW
@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
def test_text_is_the_same_however_good_the_guesses(name, depths, options, right, monkeypatch):
    model, expected, count = made(name, depths), without_guesses(name, depths, **options), Acceptance()
    if not right:
        assert expected[1] == token_by_token(model, 1, **options)
    guess_instead(monkeypatch, expected, right)
    assert model.generate(PROMPTS, NEW, acceptance=count, **options) == expected
    if right == 0.0:
        assert count == Acceptance(NEW - 1, len(PROMPTS) * depths * (NEW - 1), 0)
    elif right == 1.0:
        # The first token comes with the prompt, then 1 + depths a pass: 12 is a multiple of them.
        assert count.passes == (NEW - 1) // (1 + depths)
        assert count.drafted == count.accepted == len(PROMPTS) * depths * count.passes
    else:
        assert 0.15 < count.rate < 0.75 and count.passes < NEW - 1


@TWO
@HOW
def test_stop_tokens_end_a_row_inside_an_accepted_run(name, depths, options, monkeypatch):
    model, free = made(name, depths), without_guesses(name, depths, **options)
    for place in (1, 2, 6):
        stop, expected = {free[1][len(PROMPTS[1]) + place]}, []
        for row, prompt in zip(free, PROMPTS, strict=True):
            ends = [i for i in range(len(prompt), len(row)) if row[i] in stop]
            expected.append(row[: ends[0] + 1] if ends else row)
        with monkeypatch.context() as patch:
            guess_instead(patch, free, 0.8, seed=place)
            assert model.generate(PROMPTS, NEW, stop=stop, **options) == expected != free


@TWO
@HOW
def test_rows_do_not_depend_on_their_batch_mates(name, depths, options, monkeypatch):
    model, together = made(name, depths), without_guesses(name, depths, **options)
    guess_instead(monkeypatch, together, 0.5)
    assert model.generate([*PROMPTS[:1], [5] * 20], NEW, **options)[0] == together[0]


@EVERY
@torch.no_grad()
def test_guesses_from_the_cache_are_those_without(name, depths, monkeypatch):
    """Whatever was accepted before, also where a guess of an earlier layer was wrong."""
    model, real, seen = made(name, depths), Drafter.draft, []
    wanted = without_guesses(name, depths)

    def draft(self, hidden, known, draw):
        before = self.text_BS.clone()
        guesses = real(self, hidden, known, draw)
        seen.append((before, known.clone(), guesses.clone()))
        coin = torch.Generator().manual_seed(len(seen))
        for row, at in enumerate(known.tolist()):
            for i in range(depths):
                if torch.rand((), generator=coin) < 0.6 and at + i < len(wanted[row]):
                    guesses[row, i] = wanted[row][at + i]
        return guesses

    monkeypatch.setattr(Drafter, "draft", draft)
    monkeypatch.setattr("inazuma.model.generate.PREFILL", 6)  # prompts end in different pieces
    assert model.generate(PROMPTS, NEW) == wanted
    moves, compared = set(), 0
    for (text, known, guesses), later in zip(seen, [*seen[1:], None], strict=True):
        for row in range(len(PROMPTS)):
            n = int(known[row])
            if n >= len(wanted[row]):
                continue
            so_far = wanted[row][:n]
            assert text[row, :n].tolist() == so_far
            for depth in range(1, depths + 1):
                _, predictions = model(torch.tensor([so_far]), output_predictions=True)
                so_far = [*so_far, int(predictions[depth - 1][0, n - 2].argmax())]
                compared += 1
            assert guesses[row].tolist() == so_far[n:]
            moves.add(int(later[1][row]) - n if later else 0)
    assert compared > 20 and moves >= set(range(1, depths + 2))


def test_a_row_that_has_ended_waits_for_the_others(monkeypatch):
    """It does not run on, past the end of the cache, however good its guesses are."""
    model, prompts = made("deepseek_v32"), [PROMPTS[1], PROMPTS[0]]
    [far] = model.generate(prompts[:1], 60, speculative=False)
    stop = {far[len(prompts[0]) + 1]}
    expected = model.generate(prompts, NEW, speculative=False, stop=stop)
    assert len(expected[0]) == len(prompts[0]) + 2 and len(expected[1]) == len(prompts[1]) + NEW
    guess_instead(monkeypatch, [far, expected[1]], 1.0, 0.0)
    assert model.generate(prompts, NEW, stop=stop) == expected


def test_without_such_layers_or_with_too_short_a_prompt_nothing_is_guessed():
    for model, prompts in ((build(tiny()), PROMPTS), (made("glm4_moe", 3), [[1, 2], [3, 4, 5]])):
        count = Acceptance()
        assert model.generate(prompts, 6, acceptance=count) == model.generate(prompts, 6, speculative=False)
        assert count == Acceptance(passes=5) and count.rate == 0
    assert made("deepseek_v3").generate(PROMPTS, 0) == PROMPTS
    assert [len(row) for row in made("deepseek_v3").generate(PROMPTS, 1)] == [len(row) + 1 for row in PROMPTS]


def test_a_text_may_fill_all_positions():
    model = made("deepseek_v32", 2, max_position_embeddings=20)
    [row] = model.generate(PROMPTS[:1], 16)
    assert len(row) == 20 and row == model.generate(PROMPTS[:1], 16, speculative=False)[0]
