"""Checkpoint families: a file each, holding only what differs between its config.json and `ModelConfig`.

A family module has
    MODEL_TYPES                       the values of `model_type` that it reads
    writes(config) -> bool            whether it can express a model
    read(hf: dict) -> ModelConfig     from config.json; refuses, by name, whatever it would otherwise ignore
    write(config) -> dict             to config.json
"""

from __future__ import annotations

from types import ModuleType

from inazuma.errors import UserError
from inazuma.model.config import ModelConfig
from inazuma.model.families import deepseek, native

FAMILIES = (deepseek, native)  # the first that can express a model writes it


def reader(model_type: str) -> ModuleType:
    """The family that reads `model_type`."""
    for family in FAMILIES:
        if model_type in family.MODEL_TYPES:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.MODEL_TYPES)
    raise UserError(f"model_type: {model_type!r} is not supported; known are {known}")


def writer(config: ModelConfig) -> ModuleType:
    """The family that writes models of this shape."""
    return next(family for family in FAMILIES if family.writes(config))
