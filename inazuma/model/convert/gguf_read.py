"""GGUF files of the llama architecture, with whatever quantisation, as models of ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from inazuma.errors import UserError
from inazuma.model import families
from inazuma.model.checkpoint import assemble
from inazuma.model.config import Llama3Scaling, ModelConfig
from inazuma.model.convert.gguf_names import IN_LAYER, OUTSIDE
from inazuma.model.convert.vocabulary import adds_bos, split_named, write_tokenizer
from inazuma.model.layers import inverse_frequencies
from inazuma.model.transformer import Transformer

MAGIC = b"GGUF"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What is stored as it is; all other types are quantised."""


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(len(MAGIC)) == MAGIC


def open_gguf(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    """A file's fields and its tensors, whose data is mapped and read when used.

    Raises:
        UserError: not a GGUF file, or a damaged one.
    """
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged or not a GGUF file ({error})") from None
    if "general.architecture" not in fields:
        raise UserError(f"{path}: general.architecture is missing")
    return fields, reader.tensors


def read_gguf(path: Path, scratch: Path) -> Transformer:
    """The model in a GGUF file, its tokenizer in `scratch`.

    Weights come as they are stored, quantised ones in float32, which holds them exactly.

    Raises:
        UserError: a damaged file, another architecture, or a part of one that this model does not have.
    """
    fields, tensors = open_gguf(path)
    config = read_config(fields, {tensor.name for tensor in tensors}, path)
    write_tokenizer(fields, scratch, path)
    stored = {tensor.name: tensor for tensor in tensors}
    if (factors := stored.pop("rope_freqs.weight", None)) is not None:
        config = _with_scaling(config, torch.from_numpy(np.array(factors.data)), path)
    matrices = DTYPES.get(stored["token_embd.weight"].tensor_type.name, torch.float32)
    weights = {}
    for name, tensor in stored.items():
        ours = _our_name(name, path)
        weights[ours] = _rotated_by_halves(ours, _values(tensor, path), config).to(matrices)
    model = assemble(config, weights, path)
    model.tokenizer_folder = scratch
    return model


def read_config(fields: dict[str, Any], names: set[str], path: Path) -> ModelConfig:
    """The shape that a file's fields describe.

    Args:
        names: of its tensors: a file without an output matrix uses the embeddings.
    """
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise UserError(f"{path}: general.architecture: {architecture!r} is not supported, only 'llama'")
    ours = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    if ours.get("expert_count", 0):
        raise UserError(f"{path}: llama.expert_count: a mixture of experts is not supported in this architecture")
    if ours.get("rope.scaling.type", "none") != "none":
        raise UserError(f"{path}: llama.rope.scaling.type: {ours['rope.scaling.type']!r} is not supported")
    try:
        heads, width = ours["attention.head_count"], ours["embedding_length"]
        head = ours.get("attention.key_length", width // heads)
        hf = {
            "model_type": "llama",
            "vocab_size": ours.get("vocab_size", len(fields.get("tokenizer.ggml.tokens", ()))),
            "hidden_size": width,
            "num_hidden_layers": ours["block_count"],
            "intermediate_size": ours["feed_forward_length"],
            "num_attention_heads": heads,
            "num_key_value_heads": ours.get("attention.head_count_kv", heads),
            "head_dim": head,
            "max_position_embeddings": ours["context_length"],
            "rms_norm_eps": _shortest(ours["attention.layer_norm_rms_epsilon"]),
            "rope_theta": _shortest(ours.get("rope.freq_base", 10000.0)),
            "tie_word_embeddings": "output.weight" not in names,
        }
    except KeyError as error:
        raise UserError(f"{path}: llama.{error.args[0]} is missing") from None
    if ours.get("rope.dimension_count", head) != head or ours.get("attention.value_length", head) != head:
        raise UserError(f"{path}: llama.rope.dimension_count and attention.value_length: only {head}, the head's width")
    ends = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom") if _has(fields, name)]
    ends = sorted(set(ends), key=ends.index)
    hf["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    # Our bos_token_id is the token that texts begin with; a file may name one without putting it there.
    split = split_named(fields.get("tokenizer.ggml.pre", "gpt-2"), path)
    hf["bos_token_id"] = fields["tokenizer.ggml.bos_token_id"] if adds_bos(fields, split) else None
    return families.read(hf)


def _has(fields: dict[str, Any], name: str) -> bool:
    return f"tokenizer.ggml.{name}_token_id" in fields


def _shortest(value: float) -> float:
    """The decimal number that was meant by this float32: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _our_name(name: str, path: Path) -> str:
    for ours, theirs in OUTSIDE.items():
        if name == theirs:
            return ours
    block, _, rest = name.removeprefix("blk.").partition(".")
    ours = next((ours for ours, theirs in IN_LAYER.items() if theirs == rest), None)
    if not name.startswith("blk.") or ours is None:
        raise UserError(f"{path}: has {name}, which the llama architecture here has not")
    return f"model.layers.{block}.{ours}"


def _values(tensor: gguf.ReaderTensor, path: Path) -> Tensor:
    """A tensor in float32."""
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise UserError(f"{path}: {tensor.name}: type {tensor.tensor_type.name} cannot be read") from None
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _rotated_by_halves(name: str, x: Tensor, config: ModelConfig) -> Tensor:
    """llama.cpp's llama rotates neighbours, so its files have each head's rows of q and k interleaved: undone here."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return x
    return x.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _with_scaling(config: ModelConfig, factors: Tensor, path: Path) -> ModelConfig:
    """Llama 3.1's scaling of RoPE, of which a file keeps only what each frequency is divided by."""
    scaling = Llama3Scaling(
        factor=float(factors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain, _ = inverse_frequencies(config.head_dim, config)
    ours, _ = inverse_frequencies(config.head_dim, scaled)
    if len(factors) != len(ours) or not torch.allclose(plain / factors, ours, rtol=1e-4):
        raise UserError(f"{path}: rope_freqs.weight: not the scaling of Llama 3.1, and no other is supported")
    return scaled
