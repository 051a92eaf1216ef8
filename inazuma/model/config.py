"""The shape of a model. Names are those of the checkpoints (DeepSeek-V3.2, GLM-5, Llama)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from inazuma.errors import UserError


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): stretches RoPE from a context of `original_max_position_embeddings` by `factor`."""

    rope_type: ClassVar = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0
    """0: the softmax keeps its scale, as everywhere but in latent attention."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0 and (name, value) != ("mscale_all_dim", 0):
                raise UserError(f"{name}: must be greater than 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's stretching of RoPE: slow frequencies are divided by `factor`, fast ones left alone."""

    rope_type: ClassVar = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{name}: must be greater than 0, got {value}")
        if not self.low_freq_factor < self.high_freq_factor:
            raise UserError("low_freq_factor: must be less than high_freq_factor")


LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
GROUPED = ("num_key_value_heads", "head_dim", "partial_rotary_factor", "qkv_bias", "use_qk_norm")
INDEXER = ("index_n_heads", "index_head_dim", "indexer_types", "indexer_rope_interleave")
EXPERTS = (
    "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "first_k_dense_replace", "scoring_func",
    "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only Transformer with multi-head latent ("mla") or grouped-query ("gqa") attention.

    With `index_topk` every layer has a lightning indexer and attends to the `index_topk` tokens it selects; without it
    the same model is dense.
    """

    vocab_size: int
    model_type: str | None = None
    """The family (`inazuma.model.families`) that checkpoints are written as; None: the first that can express it."""
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_nextn_predict_layers: int = 0
    """Layers for multi-token prediction, behind those: the first predicts the token after the next one, and so on."""
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
    """gqa: width of a head."""
    partial_rotary_factor: float = 1.0
    """gqa: how much of a head's width RoPE rotates, its first part."""
    qkv_bias: bool = False
    """gqa: whether the projections to queries, keys and values have a bias."""
    use_qk_norm: bool = False
    """gqa: an RMSNorm on every query and key head, before RoPE."""

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

    n_routed_experts: int | None = None
    """Experts of a mixture layer, of which each token takes `num_experts_per_tok`; None: every layer is dense."""
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    """Experts that every token takes besides: one SwiGLU, so many times as wide; 0: none."""
    moe_intermediate_size: int = 256
    """Width of one expert."""
    first_k_dense_replace: int = 1
    """So many of the first layers stay dense; may be 0."""
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    """"sigmoid" (DeepSeek-V3, GLM-4.5) is balanced by a bias on the selection, "softmax" (Qwen3) by a loss."""
    n_group: int = 1
    """The experts lie in so many groups of neighbours, of which a token uses the best `topk_group`."""
    topk_group: int = 1
    norm_topk_prob: bool = True
    """Whether the weights of a token's experts are made to sum to one, before `routed_scaling_factor`."""
    routed_scaling_factor: float = 1.0

    rope_theta: float = 10000.0
    rope_scaling: YarnScaling | Llama3Scaling | None = None
    rope_interleave: bool = True
    """RoPE of the main attention; True in DeepSeek and GLM-5, False in Llama."""
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 0
    """Tokens that end a text."""

    def __post_init__(self) -> None:
        self._forget_what_is_not_there()
        positive = [name for name, value in vars(self).items() if type(value) is int and not name.endswith("token_id")]
        for name in positive:
            least = 0 if name in ("num_nextn_predict_layers", "n_shared_experts", "first_k_dense_replace") else 1
            if getattr(self, name) < least:
                raise UserError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        for name in ("rope_theta", "rms_norm_eps", "initializer_range", "routed_scaling_factor"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be greater than 0, got {getattr(self, name)}")
        if self.attention == "gqa" and self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"num_attention_heads: {self.num_attention_heads} cannot be shared out among "
                f"num_key_value_heads = {self.num_key_value_heads}; make it a multiple"
            )
        if not 0 < self.partial_rotary_factor <= 1:
            raise UserError(f"partial_rotary_factor: a fraction of the head, got {self.partial_rotary_factor}")
        name = "qk_rope_head_dim" if self.attention == "mla" else "head_dim"
        if self.rope_head_dim % 2 or not self.rope_head_dim:
            raise UserError(f"{name}: RoPE rotates pairs, so it must be even, got {self.rope_head_dim}")
        if self.attention == "mla" and isinstance(self.rope_scaling, Llama3Scaling):
            raise UserError("rope_scaling: latent attention has no Llama 3 scaling")
        if self.n_routed_experts is not None:
            self._check_experts(self.n_routed_experts)
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

    def _forget_what_is_not_there(self) -> None:
        """Sets the fields of parts that the model does not have to their defaults: equal models are equal."""
        absent = GROUPED if self.attention == "mla" else LATENT
        absent += INDEXER if self.index_topk is None else ()
        absent += EXPERTS if self.n_routed_experts is None else ()
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in absent:
            object.__setattr__(self, name, defaults[name])

    def _check_experts(self, experts: int) -> None:
        if experts % self.n_group:
            raise UserError(f"n_group: {self.n_group} groups cannot share out n_routed_experts = {experts}")
        if self.topk_group > self.n_group:
            raise UserError(f"topk_group: {self.topk_group} groups are to be kept of n_group = {self.n_group}")
        size = experts // self.n_group
        if self.scoring_func == "sigmoid" and self.n_group > 1 and size < 2:
            raise UserError(f"n_group: a group is scored by its best two experts, but has {size}; make fewer groups")
        if self.num_experts_per_tok > self.topk_group * size:
            raise UserError(
                f"num_experts_per_tok: {self.num_experts_per_tok} of the {self.topk_group * size} experts "
                "that a token can choose among"
            )

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a text, as a set."""
        ids = self.eos_token_id
        return frozenset() if ids is None else frozenset(ids if isinstance(ids, tuple) else (ids,))

    @property
    def rope_head_dim(self) -> int:
        """How much of a query or key head RoPE rotates."""
        return self.qk_rope_head_dim if self.attention == "mla" else int(self.head_dim * self.partial_rotary_factor)

    @property
    def index_rope_head_dim(self) -> int:
        """How much of the index width RoPE rotates: as much as in the main attention, at most all of it."""
        return min(self.rope_head_dim, self.index_head_dim)

    def has_indexer(self, layer: int) -> bool:
        """Whether a layer runs an indexer of its own; those for multi-token prediction all do."""
        if self.index_topk is None or self.indexer_types is None or layer >= self.num_hidden_layers:
            return self.index_topk is not None
        return self.indexer_types[layer] == "full"

    def index_loss_weights(self) -> list[float]:
        """What each layer's index loss counts in the sum that the indexers learn from.

        An indexer that serves n layers learns from the mean of their attention: the gradient of KL(mean of p, softmax)
        is the mean of the gradients of KL(p, softmax), so each layer's loss counts 1/n (IndexCache, arXiv 2603.12201).
        Layers for multi-token prediction, which come last, have indexers of their own.
        """
        sources = [layer for layer in range(self.num_hidden_layers) if self.has_indexer(layer)]
        ends = [*sources, self.num_hidden_layers][1:]
        served = [end - start for start, end in zip(sources, ends, strict=True)]
        ahead = self.num_nextn_predict_layers if sources else 0
        return [1 / n for n in served for _ in range(n)] + [1.0] * ahead

    def has_experts(self, layer: int) -> bool:
        """Whether a layer's feed-forward part is a mixture of experts."""
        return self.n_routed_experts is not None and layer >= self.first_k_dense_replace
