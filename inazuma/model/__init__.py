"""The model: configuration, layers, the lightning indexer, attention, cache, Transformer, generation, checkpoints."""

from inazuma.model.cache import Cache
from inazuma.model.config import Llama3Scaling, ModelConfig, YarnScaling
from inazuma.model.transformer import Transformer

__all__ = ["Cache", "Llama3Scaling", "ModelConfig", "Transformer", "YarnScaling"]
