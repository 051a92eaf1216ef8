"""Shapes that a person can train: GLM-Air's and DeepSeek's, scaled to about 15 million, 120 million and 1 billion.

`air-*` is GLM-4.5-Air made small (grouped queries, half of each head rotated, one dense layer and then a mixture of
experts), `air-*-dsa` the same with an indexer, `dsa-*` DeepSeek-V3.2 made small. Their sizes are free. `*-served` has
what the attention kernels of vLLM and SGLang insist on: a latent of 512 + 64 in latent attention, an index width of
128, heads of 128, widths in multiples of 256.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from inazuma.errors import UserError
from inazuma.model.config import ModelConfig

_SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 768,
        "n_routed_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "max_position_embeddings": 4096,
    },
    "mini": {
        "vocab_size": 16384, "hidden_size": 512, "num_hidden_layers": 12, "intermediate_size": 1536,
        "n_routed_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 160,
        "max_position_embeddings": 16384,
    },
    "small": {
        "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 2816,
        "n_routed_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 176,
        "max_position_embeddings": 65536,
    },
}  # fmt: skip
_AIR: dict[str, dict[str, Any]] = {
    "nano": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
    "mini": {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64},
    "small": {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128},
}
_DEEPSEEK: dict[str, dict[str, Any]] = {
    "nano": {
        "num_attention_heads": 8, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "mini": {
        "num_attention_heads": 8, "q_lora_rank": 256, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "small": {
        "num_attention_heads": 16, "q_lora_rank": 512, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
}  # fmt: skip
# At least 8 heads: with fewer, scores are exactly zero so often that ties decide. DeepSeek's indexer multiplies a fifth
# of what its dense attention does; these, at their few heads, about two fifths.
_INDEXER: dict[str, dict[str, Any]] = {
    "nano": {"index_topk": 256, "index_n_heads": 8, "index_head_dim": 32},
    "mini": {"index_topk": 512, "index_n_heads": 8, "index_head_dim": 64},
    "small": {"index_topk": 1024, "index_n_heads": 16, "index_head_dim": 64},
}
_SERVED_LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}


def _served(config: ModelConfig) -> ModelConfig:
    up = lambda width: -(-width // 256) * 256  # noqa: E731
    widths = {name: up(getattr(config, name)) for name in ("hidden_size", "intermediate_size", "moe_intermediate_size")}
    if config.attention == "mla":
        widths |= _SERVED_LATENT
    else:
        widths["head_dim"] = 128
    if config.index_topk is not None:
        widths["index_head_dim"] = 128
    return dataclasses.replace(config, **widths)


def _all() -> dict[str, ModelConfig]:
    free = {}
    for size, sizes in _SIZES.items():
        air = {"attention": "gqa", "rope_interleave": False, "partial_rotary_factor": 0.5, "qkv_bias": True}
        air |= {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "index_topk": None} | sizes | _AIR[size]
        free[f"air-{size}"] = ModelConfig(**air)
        free[f"air-{size}-dsa"] = ModelConfig(**air | _INDEXER[size])
        free[f"dsa-{size}"] = ModelConfig(**sizes, **_DEEPSEEK[size], **_INDEXER[size], routed_scaling_factor=2.5)
    return free | {f"{name}-served": _served(config) for name, config in free.items()}


PRESETS = _all()


def preset(name: str) -> ModelConfig:
    """The shape of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PRESETS:
        raise UserError(f"preset: {name!r} is not known; known are {', '.join(PRESETS)}")
    return PRESETS[name]


def readers(config: ModelConfig) -> list[str]:
    """Which programs read a checkpoint of this shape, beside this one.

    transformers reads every public family; llama.cpp too, through GGUF, but for index widths that are no multiple of 64
    (its Hadamard rotation of index queries and keys); vLLM and SGLang take grouped queries of any width, and latent
    attention as 512 + 64 only (their kernels' head size of 576) with an index width of 128.
    """
    from inazuma.model.families import writer

    if writer(config).model_type == "inazuma":
        return []
    latent = (config.kv_lora_rank, config.qk_rope_head_dim, config.index_head_dim)
    served = config.attention == "gqa" or latent == (512, 64, 128)
    rotated = config.index_topk is None or config.index_head_dim % 64 == 0
    return ["transformers", *(["llama.cpp"] if rotated else []), *(["vLLM", "SGLang"] if served else [])]
