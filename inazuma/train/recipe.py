"""A recipe: what to train, on what, and through which stages. This is the YAML that `inazuma train` reads.

Lengths are in tokens: they keep their meaning when the batch or the context changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from inazuma.data.shards import Dataset
from inazuma.errors import UserError
from inazuma.model.config import ModelConfig
from inazuma.model.size import parameters


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training with one kind of attention (`inazuma.ops.dsa`) and a learning-rate schedule of its own."""

    stage: Literal["dense", "warmup", "sparse"]
    """"dense": dense attention, everything learns. "warmup": dense attention, only the indexer learns. "sparse":
    attention to the selection, everything learns. The indexer always learns from its own loss alone."""
    tokens: int
    """Length; rounded up to whole steps."""
    lr: float
    """Peak learning rate."""
    index_lr: float | None = None
    """Peak learning rate of the indexers; by default `lr`."""
    train_indexer: bool = True
    """In a dense stage of a sparse model: whether the indexers learn alongside, from all visible keys."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """"wsd": linear warm-up, constant, linear decay (arXiv 2404.06395). "cosine": linear warm-up, half a cosine."""
    warmup: float = 0.0
    """Fraction of the stage that the learning rate rises over."""
    decay: float = 0.0
    """wsd: fraction of the stage, at its end, that the learning rate falls over."""
    final_lr: float = 0.0
    """Where the decay ends, as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"tokens: a stage needs at least one token, got {self.tokens}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.decay <= 1 or self.warmup + self.decay > 1:
            raise UserError("warmup, decay: fractions of the stage; neither may be negative nor their sum exceed 1")
        for name in ("lr", "index_lr"):
            value = getattr(self, name)
            if value is not None and not (0 <= value < math.inf):
                raise UserError(f"{name}: must not be negative, got {value}")

    def lr_factor(self, progress: float) -> float:
        """The learning rate at `progress` (0 to 1 through the stage), as a fraction of the peak."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "cosine":
            through = (progress - self.warmup) / max(1 - self.warmup, 1e-12)
            return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(through, 1.0)))
        left = max(1.0 - progress, 0.0)
        return self.final_lr + (1 - self.final_lr) * left / self.decay if left < self.decay else 1.0


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    matrices: Literal["adamw", "muon"] = "muon"
    """What moves the matrices of the layers. Muon (Jordan et al., 2024) with the step size of AdamW (arXiv 2502.16982),
    so that one learning rate serves both. Embeddings, logits, norms, indexers, routers and the experts of a mixture,
    which lie in one tensor, are always AdamW's."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    """Muon's."""
    embedding_lr_factor: float = 1.0
    """The token embedding learns at this many times the stage's rate: most tokens are rare, and so are their steps."""
    weight_decay: float = 0.1
    """Of everything but norms; decoupled."""
    clip: float = 1.0
    """Largest gradient norm, of the model and of its indexers each on their own: they are two learners."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole recipe."""

    data: Path
    """A folder written by `inazuma data build`."""
    model: ModelConfig
    stages: tuple[Stage, ...]
    context: int = 1024
    """Tokens a row."""
    batch_tokens: int = 16384
    """Tokens an optimizer step."""
    rows_at_once: int = 8
    """Rows a forward pass; a batch of more accumulates gradients."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mtp_weight: float | None = None
    """Weight of the loss of the layers for multi-token prediction, the mean of theirs, beside the model's own
    (arXiv 2412.19437, equation 25). None: 0.3 where there are such layers, which DeepSeek-V3 began with and lowered to
    0.1 at the end. 0: they are left as they are."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights, optimizer and the indexers' weights stay float32."""
    balance_speed: float = 1e-3
    """Mixture of experts with sigmoid scores: how far a step moves each expert's bias towards the mean load
    (arXiv 2408.15664)."""
    balance_loss: float = 1e-2
    """Mixture of experts with softmax scores: weight of the loss that keeps the load even (arXiv 2101.03961)."""
    seed: int = 0
    validate_every: int = 100
    """Steps; validation also comes at the end of every stage."""
    validation_tokens: int = 131072
    """Whole documents, up to this many tokens."""
    checkpoint_every: int = 200
    """Steps; a checkpoint also comes at the end of every stage."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and name != "seed" and value < 1:
                raise UserError(f"{name}: must be at least 1, got {value}")
        for name in ("balance_speed", "balance_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: must not be negative, got {getattr(self, name)}")
        if not self.stages:
            raise UserError("stages: a recipe needs at least one stage")
        if self.batch_tokens % self.context:
            raise UserError(f"batch_tokens: {self.batch_tokens} is not a multiple of context = {self.context}")
        if self.context > self.model.max_position_embeddings:
            raise UserError(
                f"context: {self.context} exceeds model.max_position_embeddings = {self.model.max_position_embeddings}"
            )
        if self.mtp_weight is not None:
            if not 0 <= self.mtp_weight < math.inf:
                raise UserError(f"mtp_weight: must not be negative, got {self.mtp_weight}")
            if self.mtp_weight and not self.model.num_nextn_predict_layers:
                raise UserError("mtp_weight: the model has no such layers; set model.num_nextn_predict_layers")
        if self.model.index_topk is None:
            if any(stage.stage != "dense" for stage in self.stages):
                raise UserError("stages: a dense model (model.index_topk: null) has only dense stages")
        elif self.model.index_topk > self.context:
            raise UserError(
                f"model.index_topk: {self.model.index_topk} is larger than context = {self.context}; "
                "nothing would be sparse"
            )

    @property
    def prediction_weight(self) -> float:
        """`mtp_weight`, or what it is by default; 0 where nothing is there to be trained."""
        default = 0.3 if self.model.num_nextn_predict_layers else 0.0
        return default if self.mtp_weight is None else self.mtp_weight

    @property
    def rows(self) -> int:
        """Rows an optimizer step."""
        return self.batch_tokens // self.context

    def stage_ends(self) -> list[int]:
        """The step at which each stage ends."""
        ends, step = [], 0
        for stage in self.stages:
            step += math.ceil(stage.tokens / self.batch_tokens)
            ends.append(step)
        return ends

    def stage_at(self, step: int) -> tuple[Stage, float]:
        """The stage of the step that `step` steps precede, and how far through it that step is, 0 to 1."""
        start = 0
        for stage, end in zip(self.stages, self.stage_ends(), strict=True):
            if step < end:
                # Measured at the step's middle: neither a warm-up's first nor a decay's last step has rate zero.
                return stage, (step - start + 0.5) / (end - start)
            start = end
        raise IndexError(f"step {step} lies behind the recipe's {start} steps")


TOKENS_PER_PARAMETER = 20
"""Training tokens for each active parameter (arXiv 2203.15556, table 3)."""


def recipe_for(model: ModelConfig, dataset: Dataset) -> TrainConfig:
    """A recipe that trains a shape from scratch on a corpus, to be changed as its owner likes.

    A sparse model attends densely for 70 % of its tokens, warms its indexers up and goes on sparsely; a dense one
    trains in one stage.
    """
    end = dataset.end_of_text
    model = replace(model, vocab_size=dataset.vocab_size, bos_token_id=end, eos_token_id=end)
    context = min(2048, model.max_position_embeddings)
    tokens = max(TOKENS_PER_PARAMETER * parameters(model).active, 100 * context)
    lr = 3e-3 * (256 / model.hidden_size) ** 0.5
    if model.index_topk is None:
        stages = (Stage(stage="dense", tokens=tokens, lr=lr, warmup=0.02, decay=0.3),)
    else:
        stages = (
            Stage(stage="dense", tokens=int(0.7 * tokens), lr=lr, warmup=0.03, train_indexer=False),
            Stage(stage="warmup", tokens=int(0.04 * tokens), lr=lr, index_lr=1e-2),
            Stage(stage="sparse", tokens=int(0.26 * tokens), lr=lr, index_lr=3e-3, decay=1.0),
        )
    return TrainConfig(data=dataset.path, model=model, stages=stages, context=context, batch_tokens=16 * context)
