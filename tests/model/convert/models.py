"""Small random models that other formats can express, and a tokenizer trained for them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from inazuma.data.tokenizer import END_OF_TEXT, Sample, save_tokenizer, train_tokenizer
from inazuma.model import Llama3Scaling, ModelConfig, Transformer, YarnScaling
from tests.model.tiny import build

VOCABULARY = 300
MIXTURE = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
}  # fmt: skip
SPARSE = {
    "q_lora_rank": 48, "kv_lora_rank": 64, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20,
    "index_topk": 24, "index_n_heads": 16, "index_head_dim": 128, **MIXTURE,
}  # fmt: skip
GROUPED = {
    "attention": "gqa", "num_key_value_heads": 2, "head_dim": 16, "index_topk": None, "rope_interleave": False,
}  # fmt: skip
YARN = YarnScaling(factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0)
LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)

KINDS: dict[str, dict[str, Any]] = {
    "deepseek_v32": SPARSE,
    "deepseek_v32-groups-yarn": {**SPARSE, "n_group": 4, "topk_group": 2, "index_topk": 64, "rope_scaling": YARN},
    "deepseek_v32-dense": {**SPARSE, "index_topk": 48, "n_routed_experts": None},
    "glm_moe_dsa": {**SPARSE, "indexer_rope_interleave": True, "indexer_types": ("full", "shared", "full")},
    "glm4_moe": {**GROUPED, **MIXTURE, "partial_rotary_factor": 0.5, "qkv_bias": True, "use_qk_norm": True},
    "glm4_moe-air": {**GROUPED, **MIXTURE, "partial_rotary_factor": 0.5, "n_shared_experts": 2},
    "llama": GROUPED,
    "llama-tied-scaled": {**GROUPED, "tie_word_embeddings": True, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
}


def model_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
    """A random model of a kind, its tokenizer in `folder`."""
    fields = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96,
        "num_attention_heads": 4, "initializer_range": 0.15, "max_position_embeddings": 256,
        "model_type": kind.split("-")[0], "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    model = build(ModelConfig(**fields | KINDS[kind] | changes), dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.copy_(torch.randn(bias.shape, generator=generator) * 0.1)
    write_tokenizer(folder)
    model.tokenizer_folder = folder
    return model


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of `VOCABULARY` entries, as `inazuma data build` trains them."""
    sample, draw = Sample(), random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(60)]
    for key in range(30):
        text = " ".join(draw.choices(words, k=50))
        sample.offer(key, text, len(text))
    save_tokenizer(train_tokenizer(sample, VOCABULARY), END_OF_TEXT, folder, given=None)
