"""Checkpoints are Hugging Face folders: config.json, model.safetensors, generation_config.json and the tokenizer."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from inazuma.errors import UserError
from inazuma.files import PARTIAL, atomic_folder, check_fresh, fresh_folder, read_json, write_json
from inazuma.model import families
from inazuma.model.transformer import Transformer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_model(model: Transformer, folder: Path) -> None:
    """Writes the model's files into an existing folder; `save` is this, made atomic."""
    config = model.config
    write_json(folder / "config.json", families.writer(config).write(config))
    tokens = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", {name: id for name, id in tokens.items() if id is not None})
    weights = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]  # one tensor under two names; readers tie them again
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
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
    check_fresh(path, force=force)
    new = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}-{path.name}.new")
    with atomic_folder(new) as folder:
        write_model(model, folder)
    fresh_folder(path, force=force)
    if path.exists():
        path.rmdir()
    new.rename(path)


def load(path: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Reads a Hugging Face folder.

    Args:
        path: the folder; `model_type` must be of a known family.
        dtype: of the weights; by default as they were saved.

    Returns:
        the model in evaluation mode: `model(ids)` gives logits, `model.generate(...)` token ids.

    Raises:
        UserError: a missing or damaged file, an unsupported model, weights that do not fit the configuration.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder")
    hf = read_json(path / "config.json")
    if not isinstance(hf, dict) or "model_type" not in hf:
        raise UserError(f"{path / 'config.json'}: has no model_type; is this a model folder?")
    config = families.reader(hf["model_type"]).read(hf)
    weights = _read_weights(path)
    with torch.device("meta"):
        model = Transformer(config)
    expected = {name: x.shape for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", weights.get("model.embed_tokens.weight"))
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which the configuration has not"
        raise UserError(f"{path}: {what} ({len(missing)} tensors missing, {len(surplus)} surplus)")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(f"{path}: {name} is {list(weights[name].shape)}, the configuration says {list(shape)}")
    model.load_state_dict(weights, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model = model.to(device=device, dtype=dtype).eval()
    model.tokenizer_folder = path if (path / "tokenizer.json").exists() else None
    return model


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from the shards that its index names."""
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (TypeError, KeyError, AttributeError):
            raise UserError(f"{index}: has no weight_map from tensors to files") from None
    weights: dict[str, Tensor] = {}
    for name in names:
        file = path / name
        if not file.exists():
            raise UserError(f"{file}: no such file; the checkpoint is incomplete")
        try:
            with safe_open(file, framework="pt") as reader:
                weights |= {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118  (not a dict)
        except SafetensorError as error:
            raise UserError(f"{file}: damaged ({error})") from None
    return weights
