"""The layout of DeepSeek's own inference code (DeepSeek-V3.2-Exp, inference/convert.py and model.py).

One file `model0-mp1.safetensors` with names of its own, and the fields of `ModelArgs` in a JSON file of any name. Only
a model that is not split over devices is read and written.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from inazuma.errors import UserError
from inazuma.files import read_json, write_json
from inazuma.model import families
from inazuma.model.checkpoint import TOKENIZER_FILES, assemble, dequantize, new_folder, read_safetensors, to_public
from inazuma.model.config import ModelConfig
from inazuma.model.transformer import Transformer

WEIGHTS = "model0-mp1.safetensors"
CONFIG = "config_inference.json"

_FIELDS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "route_scale": "routed_scaling_factor",
    "score_func": "scoring_func",
    **{name: name for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")},
    **{name: name for name in ("index_n_heads", "index_head_dim", "index_topk", "rope_theta")},
}
"""`ModelArgs` -> config.json of `deepseek_v32`."""

_DEFAULTS = {
    "n_expert_groups": 1, "n_limited_groups": 1, "route_scale": 1.0, "rope_theta": 10000.0, "max_seq_len": 16384,
    "original_seq_len": 4096, "rope_factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
    "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048,
}  # fmt: skip
"""What `ModelArgs` takes for missing fields, as far as the file of the published model leaves them out."""

_OUTSIDE = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_layernorm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_a_proj_with_mqa": "attn.wkv_a",
    "self_attn.kv_a_layernorm": "attn.kv_norm",
    "self_attn.kv_b_proj": "attn.wkv_b",
    "self_attn.o_proj": "attn.wo",
    **{f"self_attn.indexer.{name}": f"attn.indexer.{name}" for name in ("wq_b", "wk", "k_norm", "weights_proj")},
    "mlp.gate": "ffn.gate",
}
_SWIGLU = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_PARTS = {"weight": "weight", "bias": "bias", "e_score_correction_bias": "bias", "weight_scale_inv": "scale"}


def is_deepseek(path: Path) -> bool:
    """Whether a folder holds weights in this layout."""
    return path.is_dir() and any(path.glob("model*-mp*.safetensors"))


def read_deepseek(path: Path) -> Transformer:
    """The model in a folder of this layout; fp8 weights become bfloat16.

    Raises:
        UserError: a missing or damaged file, a split model, an unknown field or tensor.
    """
    if not (path / WEIGHTS).exists():
        raise UserError(f"{path}: is split over several devices; convert it with --model-parallel 1 ({WEIGHTS})")
    config = read_config(path)
    named = {_ours(name, path): x for name, x in read_safetensors(path / WEIGHTS).items()}
    fp8 = any(name.endswith("weight_scale_inv") for name in named)
    weights = dequantize(named, {"quant_method": "fp8", "weight_block_size": [128, 128]} if fp8 else None, path)
    model = assemble(config, weights, path)
    model.tokenizer_folder = path if (path / "tokenizer.json").exists() else None
    return model


def write_deepseek(model: Transformer, path: Path, *, force: bool = False) -> None:
    """Writes a folder in this layout, which holds bfloat16.

    Raises:
        UserError: not a DeepSeek-V3.2, or weights of another precision, which would be rounded.
    """
    config = model.config
    arguments = _arguments(config)
    weights = {}
    for name, x in to_public(model.state_dict()).items():
        if x.dtype != torch.bfloat16 and not name.endswith("e_score_correction_bias"):
            raise UserError(f"DeepSeek's layout holds bfloat16, {name} is {x.dtype}; pass --dtype bfloat16 to round it")
        weights[_theirs(name)] = x.detach().cpu().clone()  # tied weights are two tensors there
    with new_folder(path, force=force) as folder:
        save_file(weights, folder / WEIGHTS)
        write_json(folder / CONFIG, arguments)
        tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
        write_json(folder / "generation_config.json", {name: id for name, id in tokens.items() if id is not None})
        for name in TOKENIZER_FILES if model.tokenizer_folder is not None else ():
            if (model.tokenizer_folder / name).exists():
                shutil.copyfile(model.tokenizer_folder / name, folder / name)


# -------------------------------------------------------------------------------------------------------------- config


def read_config(path: Path) -> ModelConfig:
    """The shape that a folder's `ModelArgs` describe; a missing or unknown field is a `UserError`."""
    found = {file: read_json(file) for file in sorted(path.glob("config*.json"))}
    found = {file: values for file, values in found.items() if isinstance(values, dict) and "n_layers" in values}
    if len(found) != 1:
        raise UserError(f"{path}: expected one config*.json with n_layers (ModelArgs), found {len(found)}")
    [(file, given)] = found.items()
    known = {*_FIELDS, *_DEFAULTS, "dtype", "scale_fmt", "max_batch_size"}
    for name in sorted(given.keys() - known):
        raise UserError(f"{file}: {name} is not known and may change what the model computes")
    given = {**_DEFAULTS, **given}
    for name in _FIELDS:
        if name not in given:
            raise UserError(f"{file}: {name} is missing")
    hf = {"model_type": "deepseek_v32", **{ours: given[theirs] for theirs, ours in _FIELDS.items()}}
    # What ModelArgs has no field for: there is one value that the code computes.
    hf |= {"rms_norm_eps": 1e-6, "norm_topk_prob": True, "max_position_embeddings": given["max_seq_len"]}
    if given["max_seq_len"] > given["original_seq_len"]:
        hf["rope_scaling"] = {
            "type": "yarn",
            "factor": given["rope_factor"],
            "original_max_position_embeddings": given["original_seq_len"],
            "beta_fast": given["beta_fast"],
            "beta_slow": given["beta_slow"],
            "mscale": given["mscale"],
            "mscale_all_dim": given["mscale"],
        }
    generation = path / "generation_config.json"
    tokens = read_json(generation) if generation.exists() else {}
    hf |= {name: tokens[name] for name in ("bos_token_id", "eos_token_id") if name in tokens}
    return families.read(hf)


def _arguments(config: ModelConfig) -> dict[str, Any]:
    """`ModelArgs` of a model."""
    family = families.writer(config)
    if family.model_type != "deepseek_v32":
        raise UserError(f"DeepSeek's layout holds deepseek_v32 models, this one is {family.model_type}")
    hf = family.write(config)
    scaling = config.rope_scaling
    fixed = {"rms_norm_eps": 1e-6}
    if config.n_routed_experts is not None:
        fixed |= {"norm_topk_prob": True}
    for name, only in fixed.items():
        if getattr(config, name) != only:
            raise UserError(f"DeepSeek's code computes {name} = {only} only, this model has {getattr(config, name)}")
    if scaling is not None and scaling.mscale != scaling.mscale_all_dim:
        raise UserError("DeepSeek's code has one mscale, this model's mscale and mscale_all_dim differ")
    arguments = {theirs: hf[ours] for theirs, ours in _FIELDS.items()}
    # YaRN is on where the context is longer than the original one.
    arguments |= {"dtype": "bf16", "max_seq_len": config.max_position_embeddings}
    if scaling is None:
        return {**arguments, "original_seq_len": config.max_position_embeddings}
    if config.max_position_embeddings <= scaling.original_max_position_embeddings:
        raise UserError("DeepSeek's code has YaRN only beyond original_max_position_embeddings, this model's end there")
    return {
        **arguments,
        "original_seq_len": scaling.original_max_position_embeddings,
        "rope_factor": scaling.factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "mscale": scaling.mscale,
    }


# --------------------------------------------------------------------------------------------------------------- names

_MLP = re.compile(r"mlp\.(experts\.\d+\.|shared_experts\.|)(gate_proj|down_proj|up_proj)")
_FFN = re.compile(r"ffn\.(experts\.\d+\.|shared_experts\.|)(w1|w2|w3)")


def _theirs(name: str) -> str:
    """`model.layers.3.self_attn.q_a_proj.weight` -> `layers.3.attn.wq_a.weight`."""
    module, _, part = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{part}"
    prefix, layer, inside = _layer(module.removeprefix("model."))
    if (swiglu := _MLP.fullmatch(inside)) is not None:
        return f"{prefix}.{layer}.ffn.{swiglu[1]}{_SWIGLU[swiglu[2]]}.{_PARTS[part]}"
    if inside not in _IN_LAYER:
        raise UserError(f"DeepSeek's layout has no name for {name}")
    return f"{prefix}.{layer}.{_IN_LAYER[inside]}.{_PARTS[part]}"


def _ours(name: str, path: Path) -> str:
    """Undoes `_theirs`."""
    module, _, part = name.rpartition(".")
    for ours, theirs in _OUTSIDE.items():
        if module == theirs:
            return f"{ours}.{part}"
    prefix, layer, inside = _layer(module)
    part = "weight_scale_inv" if part == "scale" else part
    if (swiglu := _FFN.fullmatch(inside)) is not None:
        side = next(ours for ours, theirs in _SWIGLU.items() if theirs == swiglu[2])
        return f"model.{prefix}.{layer}.mlp.{swiglu[1]}{side}.{part}"
    ours = next((ours for ours, theirs in _IN_LAYER.items() if theirs == inside), None)
    if ours is None:
        raise UserError(f"{path}: has {name}, which is not in DeepSeek's layout")
    if (ours, part) == ("mlp.gate", "bias"):
        part = "e_score_correction_bias"
    return f"model.{prefix}.{layer}.{ours}.{part}"


def _layer(module: str) -> tuple[str, str, str]:
    """`layers.3.attn.wq_a` in three."""
    prefix, _, rest = module.partition(".")
    layer, _, inside = rest.partition(".")
    return prefix, layer, inside
