"""What a checkpoint is, from its headers alone: no weight is read. Folders, DeepSeek's layout and GGUF files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.model import families
from inazuma.model.checkpoint import weight_files
from inazuma.model.config import ModelConfig
from inazuma.model.convert.deepseek import WEIGHTS, is_deepseek, read_config
from inazuma.model.convert.gguf_read import is_gguf, open_gguf
from inazuma.model.size import cache_numbers
from inazuma.runs.surroundings import machine

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

KINDS = {
    "multi-token prediction": r"\.(eh_proj|enorm|hnorm|nextn|shared_head)\.",
    "embeddings": r"(^|\.)(embed_tokens|token_embd|embed)\.",
    "output": r"^(lm_head|output|head)\.",
    "indexer": r"\.indexer\.",
    "routed experts": r"\.experts\.|_exps\.",
    "shared experts": r"\.shared_experts\.|_shexp\.",
    "norms": r"norm\d?\.(weight|bias)$|_norm\.",
    "router": r"\.(mlp|ffn)\.gate\.|ffn_gate_inp|exp_probs_b",
    "attention": r"\.self_attn\.|\.attn\.|\.attn_",
    "feed-forward": r"\.mlp\.|\.ffn\.|\.ffn_",
}
"""What a tensor is -> an expression that its name has; the first that fits."""

PRECISIONS = {"bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes a weight, without the few percent of scales."""

USABLE = 0.9
"""The part of a machine's memory that a model may take; the rest is for everything else."""


@dataclass(frozen=True)
class Header:
    """A tensor without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Shape:
    """What decides about a token's costs."""

    layers: int
    context: int
    cache_values: int
    """Numbers that the cache keeps of a token, all layers together."""
    experts: int
    experts_per_token: int


def inspect(path: Path) -> dict[str, Any]:
    """A report on the checkpoint at `path`, of JSON's types.

    `parameters.active` leaves out the experts that a token does not take. `cache_bytes_per_token` is for bfloat16.
    `fits` is arithmetic: weights at so many bytes each, and in the rest of `USABLE` of the memory so long a context.

    Raises:
        UserError: nothing is there, a pickle file, which is never opened, a damaged file, a folder without config.json.
    """
    problem = None
    if is_gguf(path):
        kind = "GGUF"
        fields, found = open_gguf(path)
        headers = [Header(x.name, tuple(map(int, x.shape)), x.tensor_type.name, int(x.n_bytes)) for x in found]
        family, shape = fields["general.architecture"], _shape_of_fields(fields)
        tokens = len(fields.get("tokenizer.ggml.tokens", ())) or None
    elif path.is_file():
        raise UserError(_pickle(path) if path.suffix in PICKLES else f"{path}: not a checkpoint; name its folder")
    elif not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    else:
        tokens = _tokens(path / "tokenizer.json")
        if is_deepseek(path):
            kind, family = "DeepSeek's inference layout", "deepseek_v32"
            headers, shape = list(_headers(path / WEIGHTS)), _shape(read_config(path))
        else:
            kind = "Hugging Face folder"
            hf = _config(path)
            family = str(hf["model_type"])
            headers = [header for file in weight_files(path) for header in _headers(file)]
            try:
                shape = _shape(families.read(hf))
            except UserError as error:
                shape, problem = None, str(error)
    rows = _rows(headers, shape)
    total = sum(math.prod(header.shape) for header in headers if not header.name.endswith(("_scale_inv", ".scale")))
    report: dict[str, Any] = {
        "path": str(path),
        "format": kind,
        "family": family,
        "problem": problem,
        "tensors": rows,
        "bytes": sum(header.bytes for header in headers),
        "parameters": {"total": total},
        "contains": {
            "tokenizer": tokens,
            **{name: any(row["kind"] == name for row in rows) for name in ("indexer", "routed experts")},
            "multi-token prediction": any(row["kind"] == "multi-token prediction" for row in rows),
        },
    }
    if shape is None:
        return report
    routed = sum(row["parameters"] for row in rows if row["kind"] == "routed experts")
    report["parameters"]["active"] = total - (
        routed - routed * shape.experts_per_token // shape.experts if shape.experts else 0
    )
    per_token = 2 * shape.cache_values
    memory = machine()["memory"]
    return report | {
        "layers": shape.layers,
        "context": shape.context,
        "cache_bytes_per_token": per_token,
        "memory": memory,
        "fits": {name: _context(memory, total * size, per_token, shape.context) for name, size in PRECISIONS.items()},
    }


def _context(memory: int, weights: float, per_token: int, longest: int) -> int:
    """The longest context beside weights of so many bytes; 0 where even they do not fit."""
    return max(0, min(longest, int((memory * USABLE - weights) // per_token)))


# --------------------------------------------------------------------------------------------------------------- shape


def _shape(config: ModelConfig) -> Shape:
    experts, longest = config.n_routed_experts or 0, config.max_position_embeddings
    return Shape(config.num_hidden_layers, longest, cache_numbers(config), experts, config.num_experts_per_tok)


def _shape_of_fields(fields: dict[str, Any]) -> Shape | None:
    """From a GGUF file's fields; None where it has not all of them."""
    architecture = fields["general.architecture"]
    ours = {
        name.removeprefix(f"{architecture}."): value
        for name, value in fields.items()
        if name.startswith(f"{architecture}.")
    }
    try:
        layers, heads = ours["block_count"], ours["attention.head_count"]
        key = ours.get("attention.key_length", ours["embedding_length"] // heads)
        value = ours.get("attention.value_length", key)
        # A latent is key and value at once.
        latent = "attention.kv_lora_rank" in ours
        attention = key if latent else ours.get("attention.head_count_kv", heads) * (key + value)
        indexers = sum(ours.get("attention.indexer.types", [1] * layers))
        values = layers * attention + indexers * ours.get("attention.indexer.key_length", 0)
        experts = ours.get("expert_count", 0)
        return Shape(layers, ours["context_length"], values, experts, ours.get("expert_used_count", 0))
    except (KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------------------- headers


def _rows(headers: Iterable[Header], shape: Shape | None) -> list[dict[str, Any]]:
    """The tensors by kind and dtype, in the order of `KINDS`."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for header in headers:
        kind = _kind(header.name, shape)
        row = rows.setdefault((kind, header.dtype), {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(header.shape)
        row["bytes"] += header.bytes
    order = [*KINDS, "other"]
    kinds = sorted(rows, key=lambda key: (order.index(key[0]), key[1]))
    return [{"kind": kind, "dtype": dtype, **rows[kind, dtype]} for kind, dtype in kinds]


def _kind(name: str, shape: Shape | None) -> str:
    layer = re.match(r"(?:model\.layers|layers|blk)\.(\d+)\.", name)
    if layer and shape is not None and int(layer[1]) >= shape.layers:
        return "multi-token prediction"
    return next((kind for kind, expression in KINDS.items() if re.search(expression, name)), "other")


def _headers(file: Path) -> Iterable[Header]:
    if not file.exists():
        raise UserError(f"{file}: no such file; the checkpoint is incomplete")
    try:
        with safe_open(file, framework="np") as reader:
            for name in reader.keys():  # noqa: SIM118  (not a dict)
                part = reader.get_slice(name)
                shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                bits = 8 if dtype == "BOOL" else int(re.search(r"\d+", dtype)[0])
                yield Header(name, shape, dtype, math.prod(shape) * bits // 8)
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})") from None


def _config(path: Path) -> dict[str, Any]:
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if pickles and not any(path.glob("*.safetensors")):
        raise UserError(_pickle(pickles[0]))
    hf = read_json(path / "config.json")
    if not isinstance(hf, dict) or "model_type" not in hf:
        raise UserError(f"{path / 'config.json'}: has no model_type; is this a model folder?")
    return hf


def _tokens(file: Path) -> int | None:
    """How many entries a tokenizer.json has."""
    if not file.exists():
        return None
    whole = read_json(file)
    vocabulary = whole.get("model", {}).get("vocab", ())
    return len({*vocabulary, *(token["content"] for token in whole.get("added_tokens", ()))})


def _pickle(file: Path) -> str:
    return f"{file}: a pickle file can run any code when it is opened, so it is not; save the model as safetensors"
