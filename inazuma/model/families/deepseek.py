"""DeepSeek-V3.2 (`deepseek_v32`, with indexers) and V3 (`deepseek_v3`, dense attention), as transformers reads them.

Layers with mixture of experts are not supported yet and are refused.
"""

from __future__ import annotations

from typing import Any

from inazuma.config import from_dict
from inazuma.errors import UserError
from inazuma.model.config import ModelConfig

MODEL_TYPES = ("deepseek_v32", "deepseek_v3")

SAME_NAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "q_lora_rank",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings", "rms_norm_eps",
    "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip
INDEXER = ("index_topk", "index_n_heads", "index_head_dim")
# What these families fix, and the only value this model computes for it.
FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "quantization_config": None,
    "indexer_rope_interleave": False,
    "rope_interleave": True,
    "index_topk_freq": 1,
    "index_topk_pattern": None,
}


def writes(config: ModelConfig) -> bool:
    return (
        config.attention == "mla"
        and config.rope_interleave
        and (config.index_topk is None or (config.indexer_types is None and not config.indexer_rope_interleave))
    )


def read(hf: dict[str, Any]) -> ModelConfig:
    for name, only in FIXED.items():
        if name in hf and hf[name] not in (only, None):
            raise UserError(f"config.json: {name} = {hf[name]!r} is not supported, only {only!r}")
    fields = {name: hf[name] for name in SAME_NAME if name in hf}
    sparse = hf["model_type"] == "deepseek_v32"
    for name in SAME_NAME[:10] + (INDEXER if sparse else ()):
        if name not in hf:
            raise UserError(f"config.json: {name} is missing")
    layers = hf["num_hidden_layers"]
    if not isinstance(layers, int):
        raise UserError(f"config.json: num_hidden_layers: expected a whole number, got {layers!r}")
    if hf.get("first_k_dense_replace", 3) < layers or "sparse" in (hf.get("mlp_layer_types") or ()):
        raise UserError("config.json: first_k_dense_replace < layers: mixture of experts is not supported")
    if "shared" in (hf.get("indexer_types") or ()):
        raise UserError("config.json: indexer_types: deepseek_v32 has no shared selections, 'shared' would be ignored")
    if isinstance(fields.get("eos_token_id"), list):
        fields["eos_token_id"] = fields["eos_token_id"][0]
    fields |= {name: hf[name] for name in INDEXER if name in hf} if sparse else {"index_topk": None}
    return from_dict(ModelConfig, fields | _read_rope(hf), where="config.json")


def _read_rope(hf: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"config.json: rope_parameters: expected a mapping, got {rope!r}")
    theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind != "yarn":
        raise UserError(f"config.json: rope type {kind!r} is not supported, only 'default' and 'yarn'")
    scaling = {
        name: value
        for name, value in rope.items()
        if name not in ("rope_type", "type", "rope_theta") and value is not None
    }
    if not scaling.get("mscale") or not scaling.get("mscale_all_dim"):
        raise UserError("config.json: YaRN without mscale and mscale_all_dim is not supported; DeepSeek sets both")
    return {"rope_theta": theta, "rope_scaling": scaling}


def write(config: ModelConfig) -> dict[str, Any]:
    sparse = config.index_topk is not None
    name = "DeepseekV32" if sparse else "DeepseekV3"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "yarn", **vars(config.rope_scaling)}
    layers = config.num_hidden_layers
    return {
        "model_type": "deepseek_v32" if sparse else "deepseek_v3",
        "architectures": [f"{name}ForCausalLM"],
        "dtype": "float32",
        **{field: getattr(config, field) for field in SAME_NAME},
        **({field: getattr(config, field) for field in INDEXER} if sparse else {}),
        "num_key_value_heads": config.num_attention_heads,
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_bias": False,
        # All feed-forward layers are dense; the fields of the experts that are not there keep their smallest values.
        "first_k_dense_replace": layers,
        "n_routed_experts": 1,
        "n_shared_experts": 1,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": config.intermediate_size,
    }
