"""GGUF files for llama.cpp: the fields and tensors that its architectures ask for (its convert_hf_to_gguf.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from torch import Tensor

from inazuma.errors import UserError
from inazuma.files import atomic_file
from inazuma.model import families
from inazuma.model.config import Llama3Scaling, ModelConfig
from inazuma.model.convert.gguf_names import ARCHITECTURES, IN_LAYER, OUTSIDE, RENAMED
from inazuma.model.convert.vocabulary import vocabulary_fields
from inazuma.model.layers import inverse_frequencies
from inazuma.model.transformer import Transformer

FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}
"""`general.file_type`, by what the matrices are stored in."""

SIGMOID = 2
"""`expert_gating_func`."""


def write_gguf(model: Transformer, path: Path, *, force: bool = False) -> None:
    """Writes a model and its tokenizer as one GGUF file.

    Matrices keep their precision; norms, biases and the router are float32, as llama.cpp computes with them.

    Raises:
        UserError: `path` exists, without `force`; or llama.cpp has no such model or tokenizer.
    """
    if path.exists() and (path.is_dir() or not force):
        raise UserError(f"{path}: exists; choose another name" + ("" if path.is_dir() else " or pass --force"))
    dtype = model.model.embed_tokens.weight.dtype
    if dtype not in FILE_TYPES:
        raise UserError(f"GGUF holds float32, float16 and bfloat16, this model is {dtype}; pass --dtype")
    if model.tokenizer_folder is None:
        raise UserError("GGUF files have the tokenizer inside; put a tokenizer.json beside the model's weights")
    config = model.config
    family = families.writer(config)
    architecture = ARCHITECTURES.get(family.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"a {family.model_type} model cannot be written as GGUF; those that can are {known}")
    _check(config, architecture)
    tensors = list(_tensors(model, architecture))
    fields = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": FILE_TYPES[dtype],
        "general.quantization_version": 2,
        **{f"{architecture}.{name}": value for name, value in _fields(config, family.write(config)).items()},
        **vocabulary_fields(model.tokenizer_folder, config.vocab_size),
        **_special_tokens(config),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "wb") as handle:
        writer = gguf.GGUFWriter(handle.name, architecture)
        for name, value in fields.items():
            _add(writer, name, value)
        for name, x in tensors:
            kind = {torch.float32: Type.F32, torch.float16: Type.F16, torch.bfloat16: Type.BF16}[x.dtype]
            writer.add_tensor(name, x.contiguous().view(torch.uint8).numpy(), raw_dtype=kind)
        writer.write_header_to_file(Path(handle.name))
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check(config: ModelConfig, architecture: str) -> None:
    """Refuses what llama.cpp computes otherwise, or aborts at."""
    if config.n_routed_experts is not None and not config.n_shared_experts:
        raise UserError(f"n_shared_experts: llama.cpp's {architecture} has at least one, this model none")
    # Its index queries and keys go through a Hadamard rotation of this width.
    if config.index_topk is not None and config.index_head_dim % 64:
        raise UserError(f"index_head_dim: llama.cpp needs a multiple of 64, this model has {config.index_head_dim}")
    if config.attention == "mla" and config.rope_scaling is not None:
        if architecture == "glm-dsa":
            raise UserError("rope_scaling: llama.cpp scales the softmax otherwise in glm-dsa; only without scaling")
        if not config.rope_scaling.mscale == config.rope_scaling.mscale_all_dim == 1:
            raise UserError("rope_scaling: llama.cpp takes mscale and mscale_all_dim for 1, this model has others")


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    else:
        kinds = {bool: Value.BOOL, int: Value.UINT32, float: Value.FLOAT32, str: Value.STRING}
        writer.add_key_value(name, value, kinds[type(value)])


# -------------------------------------------------------------------------------------------------------------- fields


def _fields(config: ModelConfig, hf: dict[str, Any]) -> dict[str, Any]:
    """An architecture's own fields; `hf` is the config.json, whose fields of a mixture are never empty."""
    fields = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rope_head_dim,
    }
    if config.attention == "mla":
        # The absorbed form: one key head, as wide as the latent and the rotated part.
        fields |= {
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": config.q_lora_rank,
            "attention.kv_lora_rank": config.kv_lora_rank,
            "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
            "attention.value_length": config.kv_lora_rank,
            "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
            "attention.value_length_mla": config.v_head_dim,
        }
    else:
        fields |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    if config.index_topk is not None:
        fields |= {
            "attention.indexer.head_count": config.index_n_heads,
            "attention.indexer.key_length": config.index_head_dim,
            "attention.indexer.top_k": config.index_topk,
        }
    if "indexer_types" in hf:
        fields["attention.indexer.types"] = [kind == "full" for kind in hf["indexer_types"]]
    if "n_routed_experts" in hf:
        fields |= {
            "leading_dense_block_count": hf["first_k_dense_replace"],
            "expert_count": hf["n_routed_experts"],
            "expert_used_count": hf["num_experts_per_tok"],
            "expert_shared_count": hf["n_shared_experts"],
            "expert_feed_forward_length": hf["moe_intermediate_size"],
            "expert_weights_scale": float(hf["routed_scaling_factor"]),
            "expert_weights_norm": hf["norm_topk_prob"],
            "expert_gating_func": SIGMOID,
            "expert_group_count": hf["n_group"],
            "expert_group_used_count": hf["topk_group"],
        }
    return fields | _scaling(config)


def _scaling(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None or isinstance(scaling, Llama3Scaling):
        return {}  # Llama 3's is a tensor
    fields = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling.factor),
        "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
        "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
    }
    if config.attention == "mla":
        fields["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling.mscale_all_dim
    return fields


def _special_tokens(config: ModelConfig) -> dict[str, Any]:
    """What begins and ends a text, over what the tokenizer's files say."""
    fields: dict[str, Any] = {"tokenizer.ggml.add_bos_token": config.bos_token_id is not None}
    if config.bos_token_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = config.bos_token_id
    ends = config.eos_token_id if isinstance(config.eos_token_id, tuple) else (config.eos_token_id,)
    # A file has three tokens that end a text; llama.cpp stops at any of them.
    if len(ends) > 3:
        raise UserError(f"eos_token_id: GGUF has room for three tokens that end a text, this model has {len(ends)}")
    names = ("eos", "eot", "eom")
    fields |= {f"tokenizer.ggml.{name}_token_id": id for name, id in zip(names, ends, strict=False) if id is not None}
    return fields


# ------------------------------------------------------------------------------------------------------------- tensors


def _tensors(model: Transformer, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name in GGUF."""
    config = model.config
    for name, x in model.state_dict().items():
        x = x.detach().cpu()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embeddings where there is none
        if name in OUTSIDE:
            yield OUTSIDE[name], _stored(x, name)
            continue
        layer, _, inside = name.removeprefix("model.layers.").partition(".")
        if not name.startswith("model.layers.") or int(layer) >= config.num_hidden_layers:
            raise UserError(f"GGUF has no place for {name} here")
        if inside == "self_attn.kv_b_proj.weight":
            k, v = x.unflatten(0, (config.num_attention_heads, -1)).split(
                [config.qk_nope_head_dim, config.v_head_dim], dim=1
            )
            yield f"blk.{layer}.attn_k_b.weight", k.transpose(1, 2)
            yield f"blk.{layer}.attn_v_b.weight", v
            continue
        theirs = RENAMED.get(architecture, {}).get(inside) or IN_LAYER.get(inside)
        if theirs is None:
            raise UserError(f"GGUF has no place for {name} here")
        if architecture == "llama" and inside.endswith(("q_proj.weight", "k_proj.weight")):
            x = x.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        yield f"blk.{layer}.{theirs}", _stored(x, inside)
    if isinstance(config.rope_scaling, Llama3Scaling):
        plain, _ = inverse_frequencies(config.head_dim, dataclasses.replace(config, rope_scaling=None))
        scaled, _ = inverse_frequencies(config.head_dim, config)
        yield "rope_freqs.weight", plain / scaled


def _stored(x: Tensor, name: str) -> Tensor:
    """In float32 what llama.cpp computes in float32: vectors, and the matrices that choose experts and tokens."""
    return x.float() if x.dim() == 1 or name.endswith(("mlp.gate.weight", "weights_proj.weight")) else x
