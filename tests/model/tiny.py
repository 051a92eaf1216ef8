"""Models small enough to test with, in which no part is at its neutral value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inazuma.model import ModelConfig, Transformer, YarnScaling
from inazuma.model.attention import Observation

VOCABULARY = 97
YARN = YarnScaling(
    factor=4.0, original_max_position_embeddings=32, beta_fast=2.0, beta_slow=0.05, mscale=0.7, mscale_all_dim=1.2
)
"""The mscales differ from one and from each other; of `tiny`'s four pairs one is fast, one slow and two between."""


LATENT = {"q_lora_rank": 36, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 14}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
INDEX = {"index_topk": 12, "index_n_heads": 8, "index_head_dim": 18}


def tiny(**changes: Any) -> ModelConfig:
    """A sparse model with latent attention; widths all differ, so that no two can be taken for one another."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "initializer_range": 0.1,
        "max_position_embeddings": 128,
        "eos_token_id": None,
    }
    # What the model does not have stays at its default: a public checkpoint could not say it.
    fields |= GROUPED if changes.get("attention") == "gqa" else LATENT
    if changes.get("index_topk", INDEX) is not None:
        fields |= INDEX
    return ModelConfig(**fields | changes)


def build(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
    """A model of random weights, the norms' weights and biases included."""
    model = Transformer(config).init_weights(seed).to(dtype)
    randomise_norms(model, seed)
    return model.eval()


@torch.no_grad()
def randomise_norms(model: torch.nn.Module, seed: int = 0) -> None:
    """Every one-dimensional parameter: weights in 0.5..1.5, biases in -0.5..0.5."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            centre = 0.0 if name.endswith(".bias") else 1.0
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5
            parameter.copy_(centre + noise)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids, int64."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def observed(model: Transformer, ids: Tensor, **options: Any) -> list[Observation]:
    """What each layer's attention saw in one forward pass."""
    seen: list[Observation] = []
    model(ids, observe=seen.append, **options)
    return seen


def is_indexer(name: str) -> bool:
    """Whether a parameter's name is that of an indexer."""
    return ".indexer." in name
