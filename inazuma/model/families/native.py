"""What no public family can say: grouped queries with an indexer, for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inazuma.config import from_dict, to_dict
from inazuma.model.config import ModelConfig


class Native:
    """Our own `model_type`: config.json has the fields of `ModelConfig`."""

    model_type = "inazuma"

    def writes(self, config: ModelConfig) -> bool:
        """All of them."""
        return True

    def read(self, hf: Mapping[str, Any]) -> ModelConfig:
        """The shape that a config.json describes; an unknown field is a `UserError`."""
        ours = {
            name: value
            for name, value in hf.items()
            if name not in ("model_type", "architectures", "dtype", "torch_dtype")
        }
        return from_dict(ModelConfig, ours, where="config.json")

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """config.json."""
        values = {name: value for name, value in to_dict(config).items() if name != "model_type"}
        return {"model_type": self.model_type, "architectures": ["Transformer"], **values}


FAMILY = Native()
