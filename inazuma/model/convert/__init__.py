"""Checkpoints of others: GGUF (llama.cpp), the layout of DeepSeek's inference code, and another precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from inazuma.errors import UserError
from inazuma.model.checkpoint import load
from inazuma.model.convert.deepseek import is_deepseek, read_deepseek, write_deepseek
from inazuma.model.convert.gguf_read import is_gguf, read_gguf
from inazuma.model.convert.gguf_write import write_gguf
from inazuma.model.transformer import Transformer

FORMATS = ("hf", "gguf", "deepseek")


def convert(source: Path, destination: Path, *, to: str, dtype: torch.dtype | None = None, force: bool = False) -> None:
    """Writes the model in `source` to `destination`.

    Args:
        source: a model folder, a folder in DeepSeek's layout, or a GGUF file.
        to: "hf", "gguf" or "deepseek".
        dtype: of the weights; by default as they are, and quantised ones in float32, which holds them exactly.
        force: replace what `destination` holds.

    Raises:
        UserError: nothing that can be read, or a model that the other format cannot express.
    """
    write = {"hf": Transformer.save, "gguf": write_gguf, "deepseek": write_deepseek}.get(to)
    if write is None:
        raise UserError(f"to: {to!r} is not a format; known are {', '.join(FORMATS)}")
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UserError(f"{destination}: is where the model comes from; choose another name")
    with tempfile.TemporaryDirectory() as scratch:
        model = _read(source, Path(scratch))
        write(model.to(dtype), destination, force=force)


def _read(source: Path, scratch: Path) -> Transformer:
    if is_gguf(source):
        return read_gguf(source, scratch)
    if is_deepseek(source):
        return read_deepseek(source)
    if source.is_file():
        raise UserError(f"{source}: is not a GGUF file; other checkpoints are folders")
    return load(source)
