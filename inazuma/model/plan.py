"""What a model needs, from its shape alone: memory for weights, cache and activations, and what is read from disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache as remember
from typing import Literal

from inazuma.model.config import ModelConfig
from inazuma.model.layers import TOKENS
from inazuma.model.quantize import HEAD, quantized_kind
from inazuma.model.size import cache_numbers
from inazuma.model.transformer import skeleton
from inazuma.ops.packed import GROUP

Weights = Literal["bfloat16", "int8", "int4"]
WEIGHTS: tuple[Weights, ...] = ("bfloat16", "int8", "int4")

PROGRAM = 580_000_000
"""Bytes of Python, PyTorch and what they need to multiply: 250 MB are resident after the imports, 170 MB more once the
C++ operators have run (PyTorch registers them through its compiler, which it imports), about 60 MB are code made for
shapes of products and the buffers of libraries, and 100 MB are the margin that `inazuma.model.streaming` keeps."""

PIECE = 2048
"""Prompt tokens that are read at a time; see `inazuma.model.generate`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes and numbers of weights, those of layers for multi-token prediction among them."""

    config: ModelConfig
    parameters: int
    """All of them."""
    expert_parameters: int
    """Of one routed expert."""
    mixture_layers: int
    quantized_parameters: int
    """What `inazuma.model.quantize` makes int8 or int4 outside the routed experts, the output layer apart."""
    quantized_rows: int
    """Outputs of those layers: each has a scale in int8."""
    head_parameters: int
    """Of the output layer, which is int8 in both."""

    @property
    def experts(self) -> int:
        """Routed experts of all layers."""
        return self.mixture_layers * (self.config.n_routed_experts or 0)

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied by: all but the experts that it did not choose (embeddings counted whole)."""
        idle = self.experts - self.mixture_layers * self.config.num_experts_per_tok if self.experts else 0
        return self.parameters - idle * self.expert_parameters

    def expert_bytes(self, weights: Weights = "bfloat16") -> int:
        """Of one routed expert."""
        config = self.config
        rows = 2 * config.moe_intermediate_size + config.hidden_size
        return _bytes(self.expert_parameters, rows, weights) if self.experts else 0

    def resident_bytes(self, weights: Weights = "bfloat16") -> int:
        """Of all but the routed experts: what must be in memory. What is never quantised is bfloat16; a tied output
        layer that is quantised leaves the embeddings in memory too."""
        config = self.config
        rest = self.parameters - self.experts * self.expert_parameters - self.quantized_parameters
        layers = _bytes(self.quantized_parameters, self.quantized_rows, weights)
        if weights == "bfloat16":
            return 2 * rest + layers
        rest -= 0 if config.tie_word_embeddings else self.head_parameters
        return 2 * rest + layers + _bytes(self.head_parameters, config.vocab_size, "int8")

    def weight_bytes(self, weights: Weights = "bfloat16") -> int:
        """Of all weights."""
        return self.resident_bytes(weights) + self.experts * self.expert_bytes(weights)

    def cache_bytes_per_token(self, itemsize: int = 2) -> int:
        """What decoding keeps of a token, all layers together."""
        return cache_numbers(self.config) * itemsize

    def smallest_limit(self, weights: Weights = "bfloat16", *, tokens: int = 4096) -> int:
        """Bytes with which the model runs at all, two experts in memory at a time, on a text of so many tokens."""
        return self.limit(0.0, weights, tokens=tokens)

    def limit(self, share: float, weights: Weights = "bfloat16", *, tokens: int = 4096) -> int:
        """Bytes with which `share` (0 to 1) of the experts stay in memory, on a text of so many tokens."""
        held = max(round(share * self.experts), min(2, self.experts))
        work = activation_bytes(self.config, min(tokens, PIECE), 2) + tokens * self.cache_bytes_per_token()
        return PROGRAM + self.resident_bytes(weights) + held * self.expert_bytes(weights) + work

    def bytes_read_per_token(self, hit_rate: float, weights: Weights = "bfloat16") -> int:
        """From disk, for a token of decoding. With experts chosen evenly and at random, the hit rate is the share of
        the experts that is in memory (`limit`); real texts prefer some experts, so theirs is higher."""
        chosen = self.mixture_layers * (self.config.num_experts_per_tok if self.experts else 0)
        return round((1 - hit_rate) * chosen * self.expert_bytes(weights))


def plan(config: ModelConfig) -> Plan:
    """The needs of a model of this shape; no weight is made or read."""
    return _plan(config)


@remember
def _plan(config: ModelConfig) -> Plan:
    model = skeleton(config)
    expert, layers = 0, 0
    if config.n_routed_experts is not None:
        expert = 3 * config.hidden_size * config.moe_intermediate_size
        layers = len(model.mixtures())
    linears = [x for name, x in model.named_modules() if name != HEAD and quantized_kind(name, x, "int8") is not None]
    return Plan(
        config=config,
        parameters=sum(x.numel() for x in model.parameters()),
        expert_parameters=expert,
        mixture_layers=layers,
        quantized_parameters=sum(x.weight.numel() for x in linears),
        quantized_rows=sum(x.out_features for x in linears),
        head_parameters=model.lm_head.weight.numel(),
    )


def _bytes(parameters: int, rows: int, weights: Weights) -> int:
    if weights == "bfloat16":
        return 2 * parameters
    if weights == "int8":
        return parameters + 4 * rows
    return parameters // 2 + parameters // GROUP * 4  # a group has a scale and a zero point in bfloat16


def activation_bytes(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """An upper bound of what reading `tokens` tokens at once needs besides weights and cache, without gradients.

    The largest moment of a layer, counted from its code: attention holds its queries a few times over (some of it in
    float32), the feed-forward layer two hidden vectors and their product, a mixture each token's experts' outputs: as
    they are, put together, sorted back, and weighted in float32. Logits are of one token a row.
    """
    E, H = config.hidden_size, config.num_attention_heads
    width = config.kv_lora_rank + config.qk_rope_head_dim if config.attention == "mla" else config.head_dim
    query = H * width
    index = config.index_n_heads * config.index_head_dim if config.index_topk is not None else 0
    attention = tokens * (4 * query * (itemsize + 4) + index * (itemsize + 4) + 4 * (config.index_topk or 0))
    piece = min(tokens, TOKENS)
    dense = 4 * piece * config.intermediate_size * itemsize
    mixture = 0
    if config.n_routed_experts is not None:
        pairs = piece * config.num_experts_per_tok
        mixture = pairs * (E * (4 * itemsize + 4) + 3 * config.moe_intermediate_size * itemsize)
        mixture += 4 * piece * config.n_shared_experts * config.moe_intermediate_size * itemsize
    return 6 * tokens * E * itemsize + max(attention, dense, mixture) + 8 * config.vocab_size
