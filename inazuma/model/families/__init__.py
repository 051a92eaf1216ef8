"""Checkpoint families: a file each, holding only what differs between its config.json and `ModelConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inazuma.errors import UserError
from inazuma.model.config import ModelConfig
from inazuma.model.families import (
    deepseek_v3,
    deepseek_v32,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    llama,
    native,
    qwen3,
    qwen3_moe,
)
from inazuma.model.families.common import Family
from inazuma.model.families.native import Native

_MODULES = (deepseek_v32, deepseek_v3, glm_moe_dsa, glm4_moe_lite, llama, qwen3, qwen3_moe, glm4_moe, native)

FAMILIES = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}
"""By `model_type`; the first that can express a model writes it, unless the model names another one."""


def read(hf: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises:
        UserError: a `model_type` that nobody reads, or a field that its family refuses.
    """
    family = FAMILIES.get(hf["model_type"]) if isinstance(hf["model_type"], str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"config.json: model_type: {hf['model_type']!r} is not supported; known are {known}")
    config = family.read(hf)
    return config if writer(config) is family else dataclasses.replace(config, model_type=family.model_type)


def writer(config: ModelConfig) -> Family | Native:
    """The family that models of this shape are saved as.

    Raises:
        UserError: the family that `config` names cannot express it.
    """
    if config.model_type is None:
        return next(family for family in FAMILIES.values() if family.writes(config))
    family = FAMILIES.get(config.model_type)
    if family is None or not family.writes(config):
        raise UserError(f"model_type: {config.model_type!r} cannot express this model; leave it out to have one chosen")
    return family
