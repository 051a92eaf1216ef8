"""The lightning indexer: a few small heads that score every earlier token for each query."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.model.config import ModelConfig
from inazuma.model.layers import Rotation, at_least_float32


class IndexTensors(NamedTuple):
    """What the operators score with; letters as in `inazuma.ops.contract`."""

    q: Tensor
    """`[B,T,I,C]`"""
    k: Tensor
    """`[B,S,C]`"""
    w: Tensor
    """`[B,T,I]` float32, with the scales I ** -0.5 and C ** -0.5 folded in; any sign."""


class LightningIndexer(nn.Module):
    """The indexer of DeepSeek-V3.2 (`Indexer` in the authors' inference/model.py, with its RoPE layout corrected).

    What is easily got wrong: RoPE turns the *first* dimensions of q and k, and turns them by halves; the key's norm is
    a LayerNorm with bias; the heads' weights are computed in float32. The Hadamard rotation and FP8 of the original
    are left out: the one changes no product, the other only rounds.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.width = config.index_n_heads, config.index_head_dim
        self.interleaved = config.indexer_rope_interleave
        query_width = config.q_lora_rank if config.attention == "mla" else config.hidden_size
        self.wq_b = nn.Linear(query_width, self.heads * self.width, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.width, bias=False)
        self.k_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.weights_proj = nn.Linear(config.hidden_size, self.heads, bias=False)

    def forward(self, x_BTE: Tensor, query_BTL: Tensor, rotation: Rotation) -> IndexTensors:
        """Scores' ingredients for T tokens.

        Args:
            x_BTE: the layer's input after its norm, `[B,T,hidden_size]`.
            query_BTL: the query latent of multi-head latent attention, or `x_BTE` itself in grouped-query attention.
        Both are detached: the indexer learns from its own loss, and that loss moves nothing else.
        """
        x, query = x_BTE.detach(), query_BTL.detach()
        q = self._rotate(self.wq_b(query).unflatten(-1, (self.heads, self.width)), rotation)
        k = self.k_norm(self.wk(x).to(self.k_norm.weight.dtype))
        k = self._rotate(k[:, :, None], rotation)[:, :, 0]
        with torch.autocast(x.device.type, enabled=False):
            w = F.linear(at_least_float32(x), at_least_float32(self.weights_proj.weight))
        return IndexTensors(q, k.to(q.dtype), w * (self.heads * self.width) ** -0.5)

    def _rotate(self, x: Tensor, rotation: Rotation) -> Tensor:
        rope, plain = x.split([rotation.width, self.width - rotation.width], dim=-1)
        return torch.cat([rotation(rope, interleaved=self.interleaved), plain], dim=-1)
