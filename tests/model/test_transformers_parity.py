"""Checkpoints mean the same to transformers: the same logits, the same text, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import inazuma
from inazuma.errors import UserError
from inazuma.model import ModelConfig, Transformer
from tests.model.tiny import YARN, build, is_indexer, randomise_norms, tiny, tokens

TOPK = 12
BELOW, ABOVE = TOPK - 2, 80
# transformers' torch.topk breaks ties arbitrarily; with this many index heads no score is exactly zero, so none tie.
UNTIED = {"index_topk": TOPK, "index_n_heads": 32}
SHAPES = {
    "sparse": {},
    "sparse-yarn": {"rope_scaling": YARN},
    "sparse-tied": {"tie_word_embeddings": True},
    "sparse-other-eps-and-theta": {"rms_norm_eps": 1e-2, "rope_theta": 500.0},
    "dense": {"index_topk": None},
    "dense-yarn": {"index_topk": None, "rope_scaling": YARN},
}
THEIR_YARN = {"rope_type": "yarn", "rope_theta": 10000.0} | vars(YARN)


@torch.no_grad()
def same_logits(ours: Transformer, theirs: torch.nn.Module) -> None:
    """Compares at a length where every token is selected and at one where the selection matters."""
    for length in (BELOW, ABOVE):
        ids = tokens(2, length)
        logits = ours(ids)
        assert logits.dtype == torch.float32 and logits.std() > 0.3  # near zero anything would agree
        difference = (theirs.eval()(ids).logits - logits).abs().max().item()
        assert difference <= 1e-4


def read_by_transformers(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    return AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_what_we_save_transformers_reads_and_gives_the_same_logits(changes, tmp_path):
    ours = build(tiny(**UNTIED | changes), dtype=torch.float32)
    ours.save(tmp_path / "model")
    theirs, info = read_by_transformers(tmp_path / "model")
    assert isinstance(theirs, DeepseekV3ForCausalLM if ours.config.index_topk is None else DeepseekV32ForCausalLM)
    assert not any(info.values()), info
    same_logits(ours, theirs)


def test_the_comparison_notices_a_wrong_indexer_above_topk_only(tmp_path):
    ours = build(tiny(**UNTIED), dtype=torch.float32)
    ours.save(tmp_path / "model")
    theirs, _ = read_by_transformers(tmp_path / "model")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if is_indexer(name) and name.endswith("k_norm.bias"):
                parameter.neg_()
        below, above = ((theirs(ids).logits - ours(ids)).abs().max() for ids in (tokens(2, BELOW), tokens(2, ABOVE)))
    assert below <= 1e-4 < 1e-2 < above


def their_config(kind: type = DeepseekV32Config, **changes: Any) -> Any:
    config = tiny(**UNTIED)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
        "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_topk", "index_n_heads", "index_head_dim",
        "num_hidden_layers", "max_position_embeddings",
    )  # fmt: skip
    # Version 3 has no indexer, and a field that a family does not know is refused.
    fields = {name: getattr(config, name) for name in names if hasattr(kind, name)}
    fields |= {"num_key_value_heads": config.num_attention_heads, "first_k_dense_replace": config.num_hidden_layers}
    return kind(**fields | changes)


@torch.no_grad()
def their_model(kind: type, config: Any) -> torch.nn.Module:
    model = kind(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    randomise_norms(model)
    return model


@pytest.mark.parametrize(
    ("kind", "model", "changes"),
    [
        (DeepseekV32Config, DeepseekV32ForCausalLM, {}),
        (DeepseekV32Config, DeepseekV32ForCausalLM, {"rope_parameters": THEIR_YARN}),
        (DeepseekV32Config, DeepseekV32ForCausalLM, {"tie_word_embeddings": True, "eos_token_id": None}),
        (DeepseekV3Config, DeepseekV3ForCausalLM, {"eos_token_id": [5, 6]}),
    ],
    ids=["sparse", "sparse-yarn", "sparse-tied", "dense"],
)
def test_what_transformers_saves_we_read_and_give_the_same_logits(kind, model, changes, tmp_path):
    theirs = their_model(model, their_config(kind, **changes))
    # Small shards: the index file is read, too.
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ours = inazuma.load(tmp_path)
    eos = theirs.config.eos_token_id
    assert ours.config.eos_token_id == (tuple(eos) if isinstance(eos, list) else eos)
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings
    same_logits(ours, theirs)


YARN_BEFORE = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32}
OLDER = {
    "default": None,
    "yarn": YARN_BEFORE | {"mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn-betas": YARN_BEFORE | {"beta_fast": 2, "beta_slow": 0.05, "mscale": 1.0, "mscale_all_dim": 1.0},
}
INCOMPLETE = {
    "no-mscale": YARN_BEFORE,
    "mscale-only": YARN_BEFORE | {"mscale": 0.7},
    "mscale-all-dim-only": YARN_BEFORE | {"mscale_all_dim": 1.2},
    "mscale-all-dim-0": YARN_BEFORE | {"mscale": 0.7, "mscale_all_dim": 0},
}


def older_checkpoint(folder: Path, scaling: dict[str, Any] | None) -> Path:
    """A checkpoint whose configuration has the fields of before `rope_parameters`."""
    their_model(DeepseekV32ForCausalLM, their_config()).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    file.write_text(json.dumps(config | {"rope_theta": 2000.0, "rope_scaling": scaling}))
    return folder


@pytest.mark.parametrize("scaling", OLDER.values(), ids=OLDER)
def test_rope_theta_and_rope_scaling_of_older_configurations_are_read(scaling, tmp_path):
    folder = older_checkpoint(tmp_path, scaling)
    same_logits(inazuma.load(folder), AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("scaling", INCOMPLETE.values(), ids=INCOMPLETE)
def test_yarn_without_its_mscales_means_the_same_or_is_refused(scaling, tmp_path):
    folder = older_checkpoint(tmp_path, scaling)
    try:
        ours = inazuma.load(folder)
    except UserError as error:
        assert "mscale" in str(error)
    else:
        same_logits(ours, AutoModelForCausalLM.from_pretrained(folder))


@torch.no_grad()
def test_grouped_query_attention_is_llamas():
    config = tiny(attention="gqa", index_topk=None, rope_interleave=False)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=config.max_position_embeddings,
        )
    )
    ours = build(config, dtype=torch.float32)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same, too
    same_logits(ours, theirs)


def their_greedy(model: torch.nn.Module, ids: Tensor, new: int) -> list[list[int]]:
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return written.tolist()


@pytest.mark.parametrize("config", [tiny(**UNTIED), tiny(**UNTIED, rope_scaling=YARN)], ids=["plain", "yarn"])
def test_greedy_text_is_the_same(config: ModelConfig, tmp_path):
    ours = build(config, dtype=torch.float32)
    ours.save(tmp_path / "model")
    theirs, _ = read_by_transformers(tmp_path / "model")
    prompts = tokens(2, TOPK - 4)
    written = ours.generate(prompts, 40)  # well past the length from which tokens are selected
    assert written == their_greedy(theirs, prompts, 40)
    assert len({token for row in written for token in row[TOPK:]}) > 10  # not one token over and over
