"""Models that no public family can express (grouped-query attention with an indexer, shared selections)."""

from __future__ import annotations

from typing import Any

from inazuma.config import from_dict, to_dict
from inazuma.model.config import ModelConfig

MODEL_TYPES = ("inazuma",)


def writes(config: ModelConfig) -> bool:
    return True


def read(hf: dict[str, Any]) -> ModelConfig:
    fields = {name: value for name, value in hf.items() if name not in ("model_type", "architectures", "dtype")}
    return from_dict(ModelConfig, fields, where="config.json")


def write(config: ModelConfig) -> dict[str, Any]:
    return {"model_type": "inazuma", "architectures": ["Transformer"], "dtype": "float32", **to_dict(config)}
