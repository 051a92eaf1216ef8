"""Checkpoints are Hugging Face folders: config.json, model.safetensors, generation_config.json and the tokenizer."""

from __future__ import annotations

import math
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inazuma.errors import UserError
from inazuma.files import PARTIAL, atomic_folder, check_fresh, fresh_folder, read_json, write_json
from inazuma.model import families
from inazuma.model.config import ModelConfig
from inazuma.model.transformer import Transformer, skeleton

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_model(model: Transformer, folder: Path) -> None:
    """Writes the model's files into an existing folder; `save` is this, made atomic."""
    config = model.config
    weights = to_public({name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()})
    weights |= {copy: weights[name].clone() for copy, name in copies(config).items()}
    dtype = str(model.model.norm.weight.dtype).removeprefix("torch.")
    write_json(folder / "config.json", {**families.writer(config).write(config), "dtype": dtype, "torch_dtype": dtype})
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", {name: id for name, id in tokens.items() if id is not None})
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]  # one tensor under two names; readers tie them again
    _write_weights(weights, folder)
    if model.tokenizer_folder is not None:
        for name in TOKENIZER_FILES:
            if (model.tokenizer_folder / name).exists():
                shutil.copyfile(model.tokenizer_folder / name, folder / name)


def save(model: Transformer, path: Path, *, force: bool = False) -> None:
    """Writes `model`, and the tokenizer it was loaded or trained with, as a Hugging Face folder.

    Raises:
        UserError: `path` exists and is not empty, without `force`.
    """
    if path.is_dir() and model.tokenizer_folder is not None and path.samefile(model.tokenizer_folder):
        raise UserError(f"{path}: the model was loaded from here; save it elsewhere")
    with new_folder(path, force=force) as folder:
        write_model(model, folder)


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `path` when the block ends; until then `path` stays as it was.

    Raises:
        UserError: `path` exists and is not empty, without `force`.
    """
    check_fresh(path, force=force)
    new = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}-{path.name}.new")
    with atomic_folder(new) as folder:
        yield folder
    fresh_folder(path, force=force)
    if path.exists():
        path.rmdir()
    new.rename(path)


def load(path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Reads a Hugging Face folder.

    Args:
        path: the folder; `model_type` must be of a known family.
        dtype: of the weights; by default as they were saved. fp8 weights with block scales become bfloat16.

    Returns:
        the model in evaluation mode: `model(ids)` gives logits, `model.generate(...)` token ids.

    Raises:
        UserError: a missing or damaged file, an unsupported model, weights that do not fit the configuration.
    """
    path = Path(path)
    config, hf = read_config(path)
    weights: dict[str, Tensor] = {}
    for file in weight_files(path):
        weights |= read_safetensors(file)
    weights = dequantize(weights, hf.get("quantization_config"), path)
    model = assemble(with_what_is_there(config, hf, weights), weights, path)
    model = model.to(device=device, dtype=dtype)
    model.tokenizer_folder = path if (path / "tokenizer.json").exists() else None
    return model


def assemble(config: ModelConfig, weights: dict[str, Tensor], path: Path) -> Transformer:
    """A model of these weights, which are not copied.

    Args:
        weights: under the names of checkpoints; tied output weights may be missing.
        path: where they come from, for errors.

    Raises:
        UserError: they do not fit the configuration.
    """
    model = skeleton(config)
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight"))
    for copy, name in copies(config).items():
        if copy in weights and not _same(weights.pop(copy), weights.get(name)):
            raise UserError(f"{path}: {copy} differs from {name}; here all layers share one")
    check_fit(path, model, weights)
    model.load_state_dict(from_public(weights), assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def read_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A folder's config.json: as a shape, and as it is."""
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    hf = read_json(path / "config.json")
    if not isinstance(hf, dict) or "model_type" not in hf:
        raise UserError(f"{path / 'config.json'}: has no model_type; is this a model folder?")
    return families.read(hf), hf


def with_what_is_there(config: ModelConfig, hf: dict[str, Any], names: Collection[str]) -> ModelConfig:
    """`config` without layers for multi-token prediction where no tensor is theirs: transformers does not save them,
    but goes on counting them."""
    behind = f"model.layers.{config.num_hidden_layers}."
    if not config.num_nextn_predict_layers or any(name.startswith(behind) for name in names):
        return config
    return families.read(hf | {name: 0 for name in ("num_nextn_predict_layers", "num_mtp_layers") if name in hf})


def check_fit(path: Path, model: Transformer, weights: Mapping[str, Any]) -> None:
    """Refuses tensors of which some are missing, surplus or of another shape than the model's; names as on disk."""
    expected = {name: tuple(x.shape) for name, x in to_public(model.state_dict()).items()}
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which the configuration has not"
        raise UserError(f"{path}: {what} ({len(missing)} tensors missing, {len(surplus)} surplus)")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            found = list(weights[name].shape)
            raise UserError(f"{path}: {name} is {found}, the configuration says {list(shape)}")


# ---------------------------------------------------------------------------------------------------------------------
# Tensors, as the model has them and as checkpoints do
# ---------------------------------------------------------------------------------------------------------------------


def copies(config: ModelConfig) -> dict[str, str]:
    """The names under which layers for multi-token prediction repeat what they share with the model."""
    copies = {}
    for layer in range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers):
        copies[f"model.layers.{layer}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"model.layers.{layer}.shared_head.head.weight"] = "lm_head.weight"
    return copies


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.dtype == b.dtype and torch.equal(a, b)


_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def to_public(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that checkpoints give them: the experts' weights, which lie in one tensor, one by one."""
    public = {}
    for name, x in weights.items():
        if (stacked := _STACKED.fullmatch(name)) is None:
            public[name] = x
            continue
        prefix, projection = stacked.groups()
        public |= {f"{prefix}.{expert}.{projection}.weight": part for expert, part in enumerate(x.unbind())}
    return public


def from_public(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `to_public`; takes the experts out of `weights`, so that they need not be in memory twice."""
    stacks: dict[str, dict[int, Tensor]] = {}
    for name in list(weights):
        if (expert := _EXPERT.fullmatch(name)) is not None:
            prefix, number, projection = expert.groups()
            stacks.setdefault(f"{prefix}.{projection}", {})[int(number)] = weights.pop(name)
    for name in list(stacks):
        parts = stacks.pop(name)
        weights[name] = torch.stack([parts[number] for number in range(len(parts))])
    return weights


SHARD = 5_000_000_000
"""Bytes of a file of weights, at most; one tensor may be more."""


def _write_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """One file, or shards and the index that names them."""
    plan = split_torch_state_dict_into_shards(weights, max_shard_size=SHARD)
    for name, tensors in plan.filename_to_tensors.items():
        save_file({key: weights[key].contiguous() for key in tensors}, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename},
        )


_SCALE = "weight_scale_inv"


def dequantize(weights: dict[str, Tensor], quantization: Any, path: Path) -> dict[str, Tensor]:
    """DeepSeek-V3's fp8 weights in bfloat16: each block of `weight_block_size` has a scale that multiplies it."""
    if quantization is None:
        return weights
    where = f"{path / 'config.json'}: quantization_config"
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "fp8":
        raise UserError(f"{where}: only quant_method 'fp8' with block scales is supported, got {quantization!r}")
    block = quantization.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(x, int) and x > 0 for x in block)):
        raise UserError(f"{where}: weight_block_size: expected two whole numbers, got {block!r}")
    for name in [name for name in weights if name.endswith(_SCALE)]:
        scale, weight = weights.pop(name), name.removesuffix("_scale_inv")
        if weight not in weights:
            raise UserError(f"{path}: has {name}, but not {weight}")
        x = weights[weight]
        blocks = [math.ceil(size / side) for size, side in zip(x.shape, block, strict=True)]
        if list(scale.shape) != blocks:
            raise UserError(f"{path}: {name} is {list(scale.shape)}, the blocks of {weight} are {blocks}")
        wide = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        weights[weight] = (x.float() * wide[: x.shape[0], : x.shape[1]]).to(torch.bfloat16)
    fp8 = sorted(name for name, x in weights.items() if x.dtype.itemsize == 1)
    if fp8:
        raise UserError(f"{path}: {fp8[0]} is {weights[fp8[0]].dtype} and has no {_SCALE}")
    return weights


def weight_files(path: Path) -> list[Path]:
    """A folder's files of weights: one, or the shards that its index names.

    Raises:
        UserError: a file is missing, or the index names none.
    """
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{index}: has no weight_map from tensors to files") from None
    for name in names:
        if not (path / name).exists():
            for pickle in sorted((*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))):
                raise UserError(f"{pickle}: a pickle can run any code, so it is never read; save {name} instead")
            raise UserError(f"{path / name}: no such file; the checkpoint is incomplete")
    return [path / name for name in names]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one file; a damaged one is a `UserError`."""
    try:
        with safe_open(file, framework="pt") as reader:
            return {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error})") from None
