"""Attention layers: multi-head latent attention, expanded or absorbed, and grouped-query attention, dense or sparse.

Tensor suffixes: B batch, T queries, S keys, E hidden width, H query heads, G key-value heads, R latent width,
N width without position, P width with RoPE, V value width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inazuma.model.cache import Cache
from inazuma.model.config import ModelConfig
from inazuma.model.indexer import IndexTensors, LightningIndexer
from inazuma.model.layers import RMSNorm, Rotation, softmax_scale
from inazuma.ops import DSAOutput, Stage, dsa


class Context(NamedTuple):
    """What all layers of one forward pass share."""

    stage: Stage
    first: Tensor
    """int32 `[B,T]`: the first key each query sees."""
    last: Tensor
    """int32 `[B,T]`: the last key each query sees, itself."""
    rotation: Rotation
    index_rotation: Rotation | None
    """None where no indexer runs: a dense model, or a dense stage that teaches none."""
    cache: Cache | None
    balance: list[Tensor] | None = None
    """Takes each mixture of experts' balance loss; None where nobody wants them."""
    observe: Callable[[Observation], None] | None = None


class Observation(NamedTuple):
    """One layer's attention as the operators saw it, for diagnostics."""

    layer: int
    q: Tensor
    k: Tensor
    index: IndexTensors | None
    context: Context
    scale: float
    result: DSAOutput


class Selection(NamedTuple):
    """What a layer hands on to the layers that share its indexer."""

    index: IndexTensors
    indices: Tensor | None


class Attention(nn.Module):
    """What both kinds have in common: the indexer, and attending in the stage at hand."""

    def __init__(self, config: ModelConfig, layer: int, query_width: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.scale = softmax_scale(query_width, config.rope_scaling)
        if config.has_indexer(layer):
            self.indexer = LightningIndexer(config)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, query: Tensor, context: Context, shared: Selection | None
    ) -> tuple[DSAOutput, Selection | None]:
        """DSA over q, k, v with this layer's indexer, or with the `shared` selection of an earlier layer.

        `x` and `query` are the indexer's inputs. Returns the operator's output and what later layers may share.
        """
        index, indices = None, None
        if context.index_rotation is not None:
            if self.config.has_indexer(self.layer):
                index = self.indexer(x, query, context.index_rotation)
                if context.cache is not None:
                    index = index._replace(k=context.cache.write(self.layer, "index_k", index.k))
            else:
                index, indices = shared
        result = dsa(
            q,
            k,
            v,
            *(index or (None, None, None)),
            topk=self.config.index_topk or 1,
            stage=context.stage,
            first=context.first,
            last=context.last,
            scale=self.scale,
            indices=indices,
        )
        if context.observe is not None:
            context.observe(Observation(self.layer, q, k, index, context, self.scale, result))
        return result, None if index is None else Selection(index, result.indices)


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Keys and values of all heads are expanded from one latent per token. The absorbed form multiplies that expansion
    into the query and the output instead, so that every head reads the latent itself: the cache keeps R + P numbers a
    token, and one gathered row serves all heads. Both forms are the same function.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer, config.qk_nope_head_dim + config.qk_rope_head_dim)
        E, H, R = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        N, P, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.q_a_proj = nn.Linear(E, config.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, 1e-6)  # the latents' norms do not follow rms_norm_eps
        self.q_b_proj = nn.Linear(config.q_lora_rank, H * (N + P), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(E, R + P, bias=False)
        self.kv_a_layernorm = RMSNorm(R, 1e-6)
        self.kv_b_proj = nn.Linear(R, H * (N + V), bias=False)
        self.o_proj = nn.Linear(H * V, E, bias=False)

    def forward(
        self, x_BTE: Tensor, context: Context, shared: Selection | None, *, absorbed: bool | None = None
    ) -> tuple[Tensor, DSAOutput, Selection | None]:
        """`absorbed` None: absorbed where few of many tokens are read, by a selection or a step of decoding. Expanding
        every token would cost the most there, and one gathered row serves all heads.
        """
        config = self.config
        H, R = config.num_attention_heads, config.kv_lora_rank
        N, P, V = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        rotate = context.rotation

        query_BTL = self.q_a_layernorm(self.q_a_proj(x_BTE))
        q_nope, q_rope = self.q_b_proj(query_BTL).unflatten(-1, (H, N + P)).split([N, P], dim=-1)
        q_rope = rotate(q_rope, interleaved=config.rope_interleave)
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTE).split([R, P], dim=-1)
        k_rope = rotate(k_rope[:, :, None], interleaved=config.rope_interleave)
        latent_BSGD = torch.cat([self.kv_a_layernorm(latent)[:, :, None], k_rope], dim=-1)  # G = 1, D = R + P
        if context.cache is not None:
            latent_BSGD = context.cache.write(self.layer, "latent", latent_BSGD)

        if absorbed is None:
            absorbed = context.cache is not None or context.stage in ("sparse", "frozen")
        if absorbed:
            expand_k, expand_v = self.kv_b_proj.weight.unflatten(0, (H, N + V)).split([N, V], dim=1)
            q = torch.cat([torch.einsum("bthn,hnr->bthr", q_nope, expand_k.to(q_nope.dtype)), q_rope], dim=-1)
            del q_nope, q_rope  # together as large as q, and q is the largest tensor here
            result, selection = self.attend(q, latent_BSGD, latent_BSGD[..., :R], x_BTE, query_BTL, context, shared)
            out_BTHV = torch.einsum("bthr,hvr->bthv", result.out, expand_v.to(result.out.dtype))
        else:
            latent, k_rope = latent_BSGD.split([R, P], dim=-1)
            k_nope, v = self.kv_b_proj(latent[:, :, 0]).unflatten(-1, (H, N + V)).split([N, V], dim=-1)
            k = torch.cat([k_nope, k_rope.expand(-1, -1, H, -1)], dim=-1)
            q = torch.cat([q_nope, q_rope], dim=-1)
            result, selection = self.attend(q, k, v, x_BTE, query_BTL, context, shared)
            out_BTHV = result.out
        return self.o_proj(out_BTHV.flatten(2)), result, selection


class GroupedQueryAttention(Attention):
    """Grouped-query attention (arXiv 2305.13245); its indexer reads the hidden state where MLA's reads the latent."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__(config, layer, config.head_dim)
        E, D, G = config.hidden_size, config.head_dim, config.num_key_value_heads
        self.q_proj = nn.Linear(E, config.num_attention_heads * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(E, G * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(E, G * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * D, E, bias=False)
        if config.use_qk_norm:
            self.q_norm = RMSNorm(D, config.rms_norm_eps)
            self.k_norm = RMSNorm(D, config.rms_norm_eps)

    def forward(
        self, x_BTE: Tensor, context: Context, shared: Selection | None
    ) -> tuple[Tensor, DSAOutput, Selection | None]:
        q, k, v = (
            project(x_BTE).unflatten(-1, (-1, self.config.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.use_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = self._rotate(q, context.rotation), self._rotate(k, context.rotation)
        if context.cache is not None:
            k = context.cache.write(self.layer, "k", k)
            v = context.cache.write(self.layer, "v", v)
        result, selection = self.attend(q, k, v, x_BTE, x_BTE, context, shared)
        return self.o_proj(result.out.flatten(2)), result, selection

    def _rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        rope, plain = x.split([rotation.width, self.config.head_dim - rotation.width], dim=-1)
        rope = rotation(rope, interleaved=self.config.rope_interleave)
        return torch.cat([rope, plain], dim=-1) if plain.shape[-1] else rope


ATTENTION = {"mla": LatentAttention, "gqa": GroupedQueryAttention}
