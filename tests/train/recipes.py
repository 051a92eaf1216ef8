"""Tiny recipes for the tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inazuma.config import from_dict
from inazuma.train.recipe import TrainConfig
from inazuma.train.trainer import Interrupted, Trainer

CONTEXT = 32
STEP = 4 * CONTEXT
"""Tokens an optimizer step."""

MODEL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "index_topk": 8,
    "index_n_heads": 8,
    "index_head_dim": 8,
    "max_position_embeddings": 64,
}

STAGES = [
    {"stage": "dense", "tokens": 4 * STEP, "lr": 3e-3, "warmup": 0.5},
    {"stage": "warmup", "tokens": 4 * STEP, "lr": 1e-3, "index_lr": 1e-2},
    {"stage": "sparse", "tokens": 4 * STEP, "lr": 3e-3, "decay": 0.5},
]


def recipe(data: Path, model: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
    """Three stages of four steps each, unless `changes` say otherwise."""
    fields = {
        "data": str(data),
        "model": MODEL | (model or {}),
        "stages": STAGES,
        "context": CONTEXT,
        "batch_tokens": STEP,
        "rows_at_once": 2,
        "validate_every": 3,
        "validation_tokens": 400,
        "checkpoint_every": 3,
    }
    return from_dict(TrainConfig, fields | changes, where="recipe")


def train(config: TrainConfig, path: Path, *, stop_at: tuple[int, ...] = ()) -> Trainer:
    """A whole run, interrupted and resumed (by a new trainer) after each of the steps `stop_at`."""
    trainer = Trainer.start(config, path, command=["test"])
    for stop in stop_at:
        try:
            trainer.train(stop_at=stop)
        except Interrupted:
            trainer = Trainer.resume(path)
    trainer.train()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: x.detach().clone() for name, x in trainer.train_step.model.state_dict().items()}


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"not bit for bit the same: {different}"
