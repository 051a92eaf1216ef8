"""The model: configuration, layers, the lightning indexer, attention, cache, Transformer, generation, checkpoints."""

from inazuma.model.cache import Cache
from inazuma.model.config import ModelConfig, YarnScaling
from inazuma.model.transformer import Transformer

__all__ = ["Cache", "ModelConfig", "Transformer", "YarnScaling"]
