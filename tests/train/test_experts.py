"""Mixtures of experts are trained by the same recipe: balanced, resumed bit for bit, and heard when they collapse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inazuma.errors import UserError
from tests.train.recipes import STEP, assert_same_bits, recipe, train, weights

EXPERTS = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SOFTMAX = EXPERTS | {"scoring_func": "softmax", "n_shared_experts": 0}
LONG = {
    "stages": [{"stage": "dense", "tokens": 60 * STEP, "lr": 3e-3}],
    # Neither changes what is trained; every third step they would take longer than it.
    "validate_every": 1000,
    "checkpoint_every": 1000,
}


def lines(path: Path, kind: str) -> list[dict]:
    metrics = (path / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, metrics) if line["kind"] == kind]


@pytest.mark.parametrize("model", [EXPERTS, SOFTMAX, EXPERTS | {"attention": "gqa"}], ids=["sigmoid", "softmax", "gqa"])
def test_an_interrupted_run_ends_with_the_same_bits(model, corpus, tmp_path):
    config = recipe(corpus, model)
    whole = train(config, tmp_path / "whole")
    parts = train(config, tmp_path / "parts", stop_at=(2, 7))
    assert_same_bits(weights(whole), weights(parts))
    if model["n_routed_experts"] and "scoring_func" not in model:
        bias = weights(whole)["model.layers.1.mlp.gate.e_score_correction_bias"]
        # Of twelve steps the four of the warm-up leave it alone.
        assert 0 < bias.abs().max() <= 8.001 * config.balance_speed


def test_the_load_is_logged_and_becomes_even(corpus, tmp_path):
    quick = recipe(corpus, EXPERTS, balance_speed=0.02, **LONG)
    never = recipe(corpus, EXPERTS, balance_speed=0.0, **LONG)
    uneven = []
    for name, config in (("quick", quick), ("never", never)):
        train(config, tmp_path / name)
        logged = lines(tmp_path / name, "train")
        assert all(len(line["max_violation"]) == len(line["idle_experts"]) == 1 for line in logged)
        uneven.append(sum(line["max_violation"][0] for line in logged[-20:]) / 20)
    assert uneven[0] < 0.6 * uneven[1]


def test_the_balance_loss_keeps_a_softmax_router_even(corpus, tmp_path):
    uneven = []
    for weight in (0.1, 0.0):
        path = tmp_path / str(weight)
        train(recipe(corpus, SOFTMAX, balance_loss=weight, **LONG), path)
        uneven.append(sum(line["max_violation"][0] for line in lines(path, "train")[-20:]) / 20)
    assert uneven[0] < 0.8 * uneven[1]


def test_a_router_that_collapses_is_reported(corpus, tmp_path):
    config = recipe(corpus, EXPERTS, stages=[{"stage": "dense", "tokens": 3 * STEP, "lr": 0.0}])
    from inazuma.train.trainer import Trainer

    trainer = Trainer.start(config, tmp_path / "run", command=["test"])
    with torch.no_grad():
        trainer.train_step.mixtures[1].gate.e_score_correction_bias[:2] = 100.0
    trainer.train()
    [warning] = lines(tmp_path / "run", "warning")
    assert "layer 1: 75% of the experts got no token" in warning["message"] and "balance_speed" in warning["message"]


@pytest.mark.parametrize("field", ["balance_speed", "balance_loss"])
def test_a_negative_balance_is_refused(field, corpus):
    with pytest.raises(UserError, match=field):
        recipe(corpus, EXPERTS, **{field: -1.0})
