"""How large a model is and what a token costs, from its configuration alone."""

from __future__ import annotations

from typing import NamedTuple

from inazuma.model.config import ModelConfig
from inazuma.model.transformer import skeleton


class Parameters(NamedTuple):
    total: int
    active: int
    """Those that a token uses: all but the experts it does not choose."""


def parameters(config: ModelConfig) -> Parameters:
    """Counts a model that is built without memory; tied weights count once."""
    model = skeleton(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(x.numel() for mixture in model.mixtures().values() for x in mixture.experts.parameters())
    if not experts:
        return Parameters(total, total)
    return Parameters(total, total - experts + experts * config.num_experts_per_tok // config.n_routed_experts)


def cache_numbers(config: ModelConfig) -> int:
    """Numbers that the cache keeps of one token, all layers together."""
    per_layer = config.kv_lora_rank + config.qk_rope_head_dim
    if config.attention == "gqa":
        per_layer = 2 * config.num_key_value_heads * config.head_dim
    indexers = sum(config.has_indexer(layer) for layer in range(config.num_hidden_layers))
    return config.num_hidden_layers * per_layer + indexers * config.index_head_dim


def flops(config: ModelConfig, context: int) -> int:
    """Floating-point operations of the forward pass of the token that sees `context` tokens; a multiply-add is two.

    Dense attention multiplies a query head with every key and value, a selection with `index_topk` of them (in latent
    attention in its absorbed form, R + P and R wide), and an indexer scores every key with I heads of width C.
    """
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    kept = context if config.index_topk is None else min(config.index_topk, context)
    if config.attention == "gqa":
        widths = 2 * config.head_dim
    elif config.index_topk is None:
        widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        widths = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    indexers = sum(config.has_indexer(layer) for layer in range(layers))
    scores = indexers * context * config.index_n_heads * config.index_head_dim
    # The embedding is looked up, not multiplied; tied, it is counted once and multiplied as the head.
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return 2 * (parameters(config).active - looked_up + layers * heads * kept * widths + scores)
