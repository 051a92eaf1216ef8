"""Attention layers of the two families, in terms of the operators, and the spans they get in place of a mask.

Tensor suffixes: B batch, T queries, S keys, I index heads, C index width, K kept tokens. Widths: R latent, N without
position, P with RoPE, V values, E hidden.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek_v32
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm_moe_dsa

from inazuma import ops
from inazuma.errors import UserError

NAME = "inazuma"


class Family(NamedTuple):
    """What the two families of models call their parts, and the only thing their indexers do differently."""

    attention: type[nn.Module]
    pretrained: type[nn.Module]
    rotate: Callable[..., tuple[Tensor, Tensor]]
    rotate_index: Callable[..., tuple[Tensor, Tensor]]
    shares: bool
    """Whether a layer passes its selection on to later ones (IndexShare)."""


FAMILIES = (
    Family(
        deepseek_v32.DeepseekV32Attention,
        deepseek_v32.DeepseekV32PreTrainedModel,
        deepseek_v32.apply_rotary_pos_emb_interleave,
        deepseek_v32.apply_rotary_pos_emb,
        shares=False,
    ),
    Family(
        glm_moe_dsa.GlmMoeDsaAttention,
        glm_moe_dsa.GlmMoeDsaPreTrainedModel,
        glm_moe_dsa.apply_rotary_pos_emb_interleave,
        glm_moe_dsa.apply_rotary_pos_emb_interleave,
        shares=True,
    ),
)


class IndexTensors(NamedTuple):
    q_BTIC: Tensor
    k_BSC: Tensor
    w_BTI: Tensor


class Selection(NamedTuple):
    """What a layer hands on to those that share its indexer."""

    indices_BTK: Tensor | None
    """None where every visible key is kept."""
    index: IndexTensors | None
    """None where nothing is taught."""


losses: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()
"""Of each layer, in its last forward pass. Not kept in the module: it could no longer be copied."""


def spans(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **kwargs: Any,
) -> Tensor:
    """What the models get in place of a mask: transformers calls it as it calls its own functions that make masks.

    Args:
        q_offset: the position of the first query among the keys. mask_function: says whether a query sees a key.
        attention_mask: bool `[B, up to kv_length]`, False for padding.

    Returns:
        int32 `[B,3,T]`: the first and the last key that each query sees, and 1 for a token, 0 for padding.

    Raises:
        UserError: what a query sees is not a span.
    """
    model = getattr(config, "model_type", None)
    if model not in ("deepseek_v32", "glm_moe_dsa"):
        raise UserError(f"attn_implementation: {NAME!r} is for deepseek_v32 and glm_moe_dsa, not {model}")
    if use_vmap or kv_offset or not getattr(config, "is_causal", True):
        raise UserError(
            "attention_mask: only causal attention can be expressed, not a mask function or is_causal=False"
        )
    query = (torch.arange(q_length, device=device) + q_offset).expand(batch_size, -1)
    first, last, is_token = torch.zeros_like(query), query, torch.ones_like(query)
    if mask_function is not None:
        # Packed sequences: one begins where a query does not see its predecessor.
        row = torch.arange(batch_size, device=device)[:, None]
        begins = ~mask_function(row, torch.zeros_like(row), query, (query - 1).clamp(min=0)).expand_as(query)
        begins = torch.cat([torch.zeros_like(begins[:, :1]), begins[:, 1:]], dim=1)
        first = torch.where(begins, query, 0).cummax(dim=1).values
    if attention_mask is not None:
        if attention_mask.dim() != 2:
            raise UserError(f"attention_mask: expected padding [B,S], got {list(attention_mask.shape)}")
        tokens = attention_mask[:, :kv_length].bool()
        start = tokens.int().argmax(dim=1, keepdim=True)
        end = start + tokens.sum(dim=1, keepdim=True) - 1
        position = torch.arange(tokens.shape[1], device=tokens.device)
        if not torch.equal(tokens, (start <= position) & (position <= end)):
            raise UserError("attention_mask: padding between tokens is not supported, only on the left or on the right")
        is_token = (start <= query) & (query <= end)
        first, last = torch.maximum(first, start), torch.minimum(last, end)
    return torch.stack([first, last, is_token.to(first.dtype)], dim=1).int()


def attend(
    family: Family,
    layer: nn.Module,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor,
    past_key_values: Any = None,
    position_ids: Tensor | None = None,
    prev_topk_indices: Selection | None = None,
    **kwargs: Any,
) -> tuple:
    """`forward` of the families' attention: `hidden_states [B,T,E]`, `attention_mask` as `spans` gives it.

    Returns the output `[B,T,E]`, None in the place of attention weights, and for GLM what later layers share.
    """
    _check(layer, attention_mask, kwargs)
    first, last, _ = attention_mask.unbind(1)
    N, P, R, V = layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.kv_lora_rank, layer.v_head_dim
    T, topk = hidden_states.shape[1], layer.config.index_topk

    query = layer.q_a_layernorm(layer.q_a_proj(hidden_states))
    q_nope, q_rope = layer.q_b_proj(query).unflatten(-1, (-1, N + P)).split([N, P], dim=-1)
    latent, k_rope = layer.kv_a_proj_with_mqa(hidden_states)[:, :, None].split([R, P], dim=-1)
    latent = layer.kv_a_layernorm(latent)
    q_rope, k_rope = family.rotate(q_rope, k_rope, *position_embeddings, unsqueeze_dim=2)
    if past_key_values is not None:
        cached = past_key_values.update(latent.transpose(1, 2), k_rope.transpose(1, 2), layer.layer_idx)
        latent, k_rope = (x.transpose(1, 2) for x in cached)
    S = latent.shape[1]
    reads_all = topk >= S

    teaches = layer.training and torch.is_grad_enabled()
    if layer.indexer is None:
        if prev_topk_indices is None:
            raise UserError(
                f"config.json: indexer_types: layer {layer.layer_idx} shares a selection, but none precedes it"
            )
        selection = prev_topk_indices
    else:
        index, indices = None, None
        if teaches or not reads_all or past_key_values is not None:
            with torch.set_grad_enabled(teaches):
                inputs = hidden_states.detach(), query.detach()
                index = _index(family, layer.indexer, *inputs, position_embeddings, past_key_values)
        if not reads_all:
            indices = ops.select_tokens(*index, topk, first=first, last=last)
        selection = Selection(indices, index if teaches and index.q_BTIC.requires_grad else None)
        del index

    # Absorbed, one gathered row serves all heads; where every key is read anyway, expanding them once is cheaper.
    absorbed = _is_plain(layer.kv_b_proj, hidden_states) and not (reads_all and T == S)
    dtype = q_nope.dtype  # under autocast the norms and rotations give float32
    if absorbed:
        expand_k, expand_v = layer.kv_b_proj.weight.to(dtype).unflatten(0, (-1, N + V)).split([N, V], dim=1)
        q_nope = torch.einsum("bthn,hnr->bthr", q_nope, expand_k)
        k = torch.cat([latent, k_rope], dim=-1).to(dtype)
        v = k[..., :R]
    else:
        k_nope, v = layer.kv_b_proj(latent[:, :, 0]).unflatten(-1, (-1, N + V)).split([N, V], dim=-1)
        k = torch.cat([k_nope, k_rope.to(k_nope.dtype).expand(-1, -1, k_nope.shape[2], -1)], dim=-1)
    q = torch.cat([q_nope, q_rope.to(dtype)], dim=-1)
    del q_nope, q_rope  # together as large as q, and q is the largest tensor here
    if selection.indices_BTK is None:
        out, lse = ops.dense_attention(q, k, v, first=first, last=last, scale=layer.scaling)
    else:
        out, lse = ops.sparse_attention(q, k, v, selection.indices_BTK, scale=layer.scaling)
    if teaches and selection.index is not None:
        _teach(layer, selection, q, k, lse, attention_mask)
    if absorbed:
        out = torch.einsum("bthr,hvr->bthv", out, expand_v)
    out = layer.o_proj(out.flatten(2))
    return (out, None, selection) if family.shares else (out, None)


def _check(layer: nn.Module, attention_mask: Any, kwargs: dict[str, Any]) -> None:
    if not isinstance(attention_mask, Tensor) or attention_mask.dtype != torch.int32 or attention_mask.dim() != 3:
        got = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise UserError(f"attention_mask: only padding [B,S] can be expressed, got a mask {got}")
    if kwargs.get("output_attentions") or layer.config.output_attentions:
        raise UserError("output_attentions: attention weights are never made here; use attn_implementation='eager'")
    if layer.training and layer.attention_dropout:
        raise UserError(f"attention_dropout: {layer.attention_dropout} in training is not supported, only 0")
    if layer.q_lora_rank is None:
        raise UserError("config.json: q_lora_rank: null is not supported")


def _is_plain(linear: nn.Module, like: Tensor) -> bool:
    """Whether `linear` does nothing but multiply by its weight, so that another product may do it: no adapter, no
    quantisation, no weight that is sharded or elsewhere."""
    return (
        type(linear) is nn.Linear
        and type(linear.weight) in (nn.Parameter, Tensor)
        and linear.weight.device == like.device
        and not (linear._forward_hooks or linear._forward_pre_hooks)
    )


def _index(
    family: Family, indexer: nn.Module, x: Tensor, query: Tensor, position_embeddings: tuple, cache: Any
) -> IndexTensors:
    """What the operators score with, from a layer's input `x [B,T,E]` and the latent of its queries."""
    P, C = indexer.qk_rope_head_dim, indexer.head_dim
    q = indexer.wq_b(query).unflatten(-1, (-1, C))
    k = indexer.k_norm(indexer.wk(x))[:, :, None]
    (q_rope, q), (k_rope, k) = (y.split([P, C - P], dim=-1) for y in (q, k))
    q_rope, k_rope = family.rotate_index(q_rope, k_rope, *position_embeddings, unsqueeze_dim=2)
    q, k = torch.cat([q_rope, q], dim=-1), torch.cat([k_rope, k], dim=-1)[:, :, 0]
    if cache is not None:
        k = cache.update_indexer(k, indexer.layer_idx)
    w = indexer.weights_proj(x.to(indexer.weights_proj.weight.dtype)).float()
    return IndexTensors(q, k.to(q.dtype), w * (indexer.n_heads * C) ** -0.5)


def _teach(layer: nn.Module, selection: Selection, q: Tensor, k: Tensor, lse: Tensor, attention_mask: Tensor) -> None:
    # Padding on the right sees the tokens before it, but there is nothing to learn from it.
    first, last, is_token = attention_mask.unbind(1)
    if selection.indices_BTK is None:
        keys = {"first": first, "last": last.masked_fill(is_token == 0, -1)}
    else:
        keys = {"indices": selection.indices_BTK.masked_fill((is_token == 0)[..., None], -1)}
    loss = ops.index_loss(*selection.index, q, k, lse, **keys, scale=layer.scaling)
    # Gradient checkpointing runs the layer again inside the backward pass; that loss has been counted.
    if torch._C._current_graph_task_id() == -1:
        losses[layer] = loss
