"""The shape of a model. Names are those of the checkpoints (DeepSeek-V3.2, GLM-5, Llama)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inazuma.errors import UserError


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): stretches RoPE from a context of `original_max_position_embeddings` by `factor`."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        for name in vars(self):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be greater than 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only Transformer with multi-head latent ("mla") or grouped-query ("gqa") attention.

    With `index_topk` every layer has a lightning indexer and attends to the `index_topk` tokens it selects; without it
    the same model is dense.
    """

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 4
    intermediate_size: int = 768
    """Width of the SwiGLU layers."""
    num_attention_heads: int = 4
    attention: Literal["mla", "gqa"] = "mla"

    q_lora_rank: int = 128
    """mla: width of the query latent, which the indexer reads too."""
    kv_lora_rank: int = 64
    """mla: width of the latent that keys and values are expanded from, and that the cache keeps."""
    qk_nope_head_dim: int = 32
    """mla: the part of a head's width without position."""
    qk_rope_head_dim: int = 16
    """mla: the part of a head's width with RoPE; one key of this width is shared by all heads."""
    v_head_dim: int = 32
    """mla: width of a value head."""

    num_key_value_heads: int = 1
    """gqa: key-value heads; query heads are shared out among them."""
    head_dim: int = 64
    """gqa: width of a head, all of it with RoPE."""

    index_topk: int | None = 256
    """Tokens a query attends to; None: a dense model without indexers."""
    index_n_heads: int = 8
    """With few index heads exact zeros, hence ties, become frequent: use at least 8."""
    index_head_dim: int = 32
    """Laid out [rope | plain], the other way round than the main attention."""
    indexer_types: tuple[Literal["full", "shared"], ...] | None = None
    """A layer each: "shared" uses the selection of the last "full" layer before it. None: all full."""
    indexer_rope_interleave: bool = False
    """False: the two halves of the width are rotated against each other (DeepSeek-V3.2). True: neighbours (GLM-5)."""

    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | None = None
    rope_interleave: bool = True
    """RoPE of the main attention; True in DeepSeek and GLM-5, False in Llama."""
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0

    def __post_init__(self) -> None:
        positive = [name for name, value in vars(self).items() if type(value) is int and not name.endswith("token_id")]
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be greater than 0, got {getattr(self, name)}")
        if self.attention == "gqa" and self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads: {self.num_attention_heads} cannot be shared out among "
                f"num_key_value_heads = {self.num_key_value_heads}; make it a multiple"
            )
        name = "qk_rope_head_dim" if self.attention == "mla" else "head_dim"
        if self.rope_head_dim % 2:
            raise UserError(f"{name}: RoPE rotates pairs, so it must be even, got {self.rope_head_dim}")
        if self.index_topk is None:
            return
        if self.index_topk > self.max_position_embeddings:
            raise UserError(
                f"index_topk: {self.index_topk} is larger than max_position_embeddings = "
                f"{self.max_position_embeddings}; nothing would be sparse"
            )
        if self.index_rope_head_dim % 2 or (self.attention == "mla" and self.index_head_dim < self.qk_rope_head_dim):
            raise UserError(
                f"index_head_dim: must be even and at least as wide as the rope part ({self.rope_head_dim}), "
                f"got {self.index_head_dim}"
            )
        if self.indexer_types is not None:
            if len(self.indexer_types) != self.num_hidden_layers:
                raise UserError(
                    f"indexer_types: has {len(self.indexer_types)} entries for {self.num_hidden_layers} layers"
                )
            if self.indexer_types[0] != "full":
                raise UserError("indexer_types: the first layer has no earlier selection to share; make it 'full'")

    @property
    def rope_head_dim(self) -> int:
        """How much of a query or key head RoPE rotates."""
        return self.qk_rope_head_dim if self.attention == "mla" else self.head_dim

    @property
    def index_rope_head_dim(self) -> int:
        """How much of the index width RoPE rotates: as much as in the main attention, at most all of it."""
        return min(self.rope_head_dim, self.index_head_dim)

    def has_indexer(self, layer: int) -> bool:
        """Whether a layer runs an indexer of its own."""
        return self.index_topk is not None and (self.indexer_types is None or self.indexer_types[layer] == "full")
