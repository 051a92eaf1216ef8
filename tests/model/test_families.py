"""Every family means the same to transformers: random small models, both ways, cached, packed, learning."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import inazuma
from inazuma.model import Cache, Transformer
from inazuma.model.families import FAMILIES
from tests.model.tiny import randomise_norms

VOCABULARY = 61
LENGTH = 45
SEEDS = range(4)
CLASSES = {
    "deepseek_v32": "DeepseekV32", "deepseek_v3": "DeepseekV3", "glm_moe_dsa": "GlmMoeDsa", "glm4_moe": "Glm4Moe",
    "glm4_moe_lite": "Glm4MoeLite", "llama": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe",
}  # fmt: skip


def their_config(family: str, seed: int) -> Any:
    """A random shape in which no two widths are the same by design."""
    draw = random.Random(f"{family} {seed}")
    layers, heads = draw.choice([2, 3]), draw.choice([2, 3, 4])
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": draw.choice([20, 28, 36]),
        "intermediate_size": draw.choice([30, 44]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 128,
        "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-2]),
        "rope_theta": draw.choice([500.0, 10000.0]),
        "tie_word_embeddings": draw.random() < 0.3,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": draw.choice([2, [2, 3]]),
        "pad_token_id": 0,
    }
    latent = family in ("deepseek_v32", "deepseek_v3", "glm_moe_dsa", "glm4_moe_lite")
    if latent:
        fields |= {
            "q_lora_rank": draw.choice([18, 26]),
            "kv_lora_rank": draw.choice([14, 22]),
            "qk_nope_head_dim": draw.choice([6, 10]),
            "qk_rope_head_dim": draw.choice([4, 8]),
            "v_head_dim": draw.choice([5, 12]),
            "num_key_value_heads": heads,
        }
    else:
        groups = draw.choice([n for n in (1, 2, 3, 4) if heads % n == 0])
        fields |= {"num_key_value_heads": groups, "head_dim": draw.choice([8, 16])}
        if family == "llama":
            fields["hidden_size"] = heads * draw.choice([6, 8])
    if family in ("deepseek_v32", "glm_moe_dsa"):
        # With this many index heads no score is exactly zero: transformers breaks ties arbitrarily.
        fields |= {"index_topk": 12, "index_n_heads": 32, "index_head_dim": draw.choice([10, 18])}
    if family == "glm_moe_dsa":
        fields["indexer_types"] = ["full", *draw.choices(["full", "shared"], k=layers - 1)]
    if family == "glm4_moe":
        fields |= {"attention_bias": draw.random() < 0.5, "use_qk_norm": draw.random() < 0.5}
        fields["partial_rotary_factor"] = draw.choice([0.5, 1.0])
    if family not in ("llama", "qwen3"):
        fields |= {"num_experts_per_tok": draw.choice([1, 2, 3]), "moe_intermediate_size": draw.choice([7, 16])}
        fields["norm_topk_prob"] = draw.random() < 0.7
        dense = draw.randint(0, layers)
        if family == "qwen3_moe":
            fields |= {"num_experts": draw.choice([4, 6]), "mlp_only_layers": list(range(min(dense, layers - 1)))}
        else:
            groups = draw.choice([1, 2])
            fields |= {
                "n_routed_experts": draw.choice([6, 8]),
                "n_shared_experts": draw.choice([1, 2]),
                "n_group": groups,
                "topk_group": 1,
                "routed_scaling_factor": draw.choice([1.0, 2.5]),
            }
            if family == "glm4_moe_lite":
                fields["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (layers - dense)
            else:
                fields["first_k_dense_replace"] = dense
    if seed % 4 == 3:
        fields.pop("rope_theta")
        yarn = {"rope_type": "yarn", "rope_theta": 800.0, "factor": 4.0, "original_max_position_embeddings": 32}
        yarn |= {"beta_fast": 2.0, "beta_slow": 0.05}
        fields["rope_parameters"] = yarn | ({"mscale": 0.7, "mscale_all_dim": 1.2} if latent else {})
    if family == "llama" and seed == 2:
        fields.pop("rope_theta")
        llama3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 32}
        fields["rope_parameters"] = llama3 | {"low_freq_factor": 0.5, "high_freq_factor": 4.0}
    # Their grouped products refuse widths that are not whole multiples of 16 bytes.
    return getattr(transformers, CLASSES[family] + "Config")(**fields, experts_implementation="eager")


@torch.no_grad()
def their_model(family: str, seed: int) -> torch.nn.Module:
    model = getattr(transformers, CLASSES[family] + "ForCausalLM")(their_config(family, seed))
    generator = torch.Generator().manual_seed(seed)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if x.dim() > 1:
            x.copy_(torch.randn(x.shape, generator=generator) * 0.15)
        elif name.endswith("e_score_correction_bias"):
            x.copy_(torch.randn(x.shape, generator=generator) * 0.2)
    randomise_norms(model, seed)
    return model.eval()


def ids_of(rows: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def agree(a: Tensor, b: Tensor) -> None:
    assert b.std() > 0.05  # near zero anything would agree
    assert (a - b).abs().max().item() <= 1e-4 * b.abs().max().item()


def pair(family: str, seed: int, folder: Path) -> tuple[Transformer, torch.nn.Module]:
    theirs = their_model(family, seed)
    theirs.save_pretrained(folder, max_shard_size="40KB")
    return inazuma.load(folder), theirs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_what_they_save_we_read_and_what_we_save_they_read(family, seed, tmp_path):
    ours, theirs = pair(family, seed, tmp_path / "theirs")
    ids = ids_of(2)
    expected = theirs(ids).logits
    agree(ours(ids), expected)

    ours.save(tmp_path / "ours")
    again, info = getattr(transformers, CLASSES[family] + "ForCausalLM").from_pretrained(
        tmp_path / "ours", output_loading_info=True, experts_implementation="eager"
    )
    assert not any(info.values()), info
    agree(again.eval()(ids).logits, expected)
    assert again.config.eos_token_id == theirs.config.eos_token_id
    assert inazuma.load(tmp_path / "ours").config == ours.config
    assert FAMILIES[family].writes(ours.config)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_cached_padded_and_packed_rows_are_the_same(family, seed, tmp_path):
    ours, theirs = pair(family, seed, tmp_path)
    ids = ids_of(2)
    expected = theirs(ids).logits
    # Rows of different lengths, read in two pieces and then token by token.
    cache = Cache(2, LENGTH)
    lengths = torch.tensor([30, 21])
    parts = [ours(ids[:, :16], cache=cache), ours(ids[:, 16:30], cache=cache)]
    agree(torch.cat(parts, 1)[0], expected[0, :30])
    cache.truncate(lengths)
    for step in range(8):
        at = lengths + step
        logits = ours(ids[torch.arange(2), at][:, None], cache=cache)[:, 0]
        agree(logits, expected[torch.arange(2), at])
    # Two documents in one row.
    packed = torch.cat([ids[:1, :20], ids[1:, :25]], 1)
    first = torch.tensor([[0] * 20 + [20] * 25], dtype=torch.int32)
    logits = ours(packed, first=first)
    agree(logits[0, :20], theirs(ids[:1, :20]).logits[0])
    agree(logits[0, 20:], theirs(ids[1:, :25]).logits[0])


@pytest.mark.parametrize("family", CLASSES)
def test_gradients_are_the_same(family, tmp_path):
    ours, theirs = pair(family, 1, tmp_path)
    ids = ids_of(2)
    learns = dict(theirs.named_parameters())
    weight = torch.randn(2, LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(1))
    (theirs(ids).logits * weight).sum().backward()
    (ours(ids) * weight).sum().backward()
    expected = {name: x.grad for name, x in learns.items() if x.grad is not None}
    for name in [name for name in expected if name.endswith("experts.gate_up_proj")]:
        gate, up = expected.pop(name).chunk(2, dim=1)
        stem = name.removesuffix("gate_up_proj")
        expected |= {f"{stem}gate_proj": gate, f"{stem}up_proj": up}
    mine = {name: x.grad for name, x in ours.named_parameters() if x.grad is not None}
    assert mine.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        tolerance = 2e-4 * gradient.abs().max().item() + 1e-7 * largest
        assert (mine[name] - gradient).abs().max().item() <= tolerance, name


@pytest.mark.parametrize("family", CLASSES)
def test_greedy_text_is_the_same(family, tmp_path):
    ours, theirs = pair(family, 0, tmp_path)
    ids = ids_of(2, 9)
    stop = theirs.config.eos_token_id
    written = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False)
    ends = set(stop if isinstance(stop, list) else [stop])
    for mine, row in zip(ours.generate(ids, 30), written.tolist(), strict=True):
        assert mine == row[: len(mine)]
        assert len(mine) == len(row) or mine[-1] in ends


OF_OTHERS = {"num_hidden_layers", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"}
OF_OTHERS |= {"architectures", "dtype", "torch_dtype", "attention_bias", "tie_word_embeddings", "num_key_value_heads"}
OF_MIXTURES = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
OF_MIXTURES |= {"num_nextn_predict_layers": 0}


@pytest.mark.parametrize("family", CLASSES)
def test_config_json_has_what_other_engines_read(family, tmp_path):
    """vLLM, SGLang, mlx-lm and llama.cpp's converter; transformers itself drops some of these."""
    ours, _ = pair(family, 0, tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    written = json.loads((tmp_path / "ours/config.json").read_text())
    assert written.keys() >= OF_OTHERS
    assert written["torch_dtype"] == "float32"
    if FAMILIES[family].is_sparse:
        assert written.keys() >= {"index_topk", "index_n_heads", "index_head_dim", "indexer_rope_interleave"}
    if family == "glm_moe_dsa":
        assert len(written["indexer_types"]) == written["num_hidden_layers"]
    if family == "glm4_moe":
        assert "head_dim" in written and "partial_rotary_factor" in written
    if "scoring_func" in FAMILIES[family].fixed:
        assert {name: written[name] for name in OF_MIXTURES} == OF_MIXTURES
        dense = written["first_k_dense_replace"]
        sparse = written["num_hidden_layers"] - dense
        assert written["mlp_layer_types"] == ["dense"] * dense + ["sparse"] * sparse
