"""What one step does: who learns, from what, and that cutting a batch into passes changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inazuma.data.batches import Batch, training_windows
from inazuma.data.shards import Dataset
from inazuma.errors import UserError
from inazuma.model import Transformer
from inazuma.train.optimizer import build_optimizers, is_index_parameter, set_learning_rate
from inazuma.train.recipe import OptimizerConfig, Stage
from inazuma.train.step import TrainStep
from tests.train.recipes import CONTEXT, recipe


def step_of(data: Path, **changes) -> TrainStep:
    config = recipe(data, **changes)
    return TrainStep(Transformer(config.model).init_weights(0), config)


def batch_of(data: Path, rows: int = 4) -> Batch:
    return training_windows(Dataset.open(data).train, context=CONTEXT, position=0, count=rows, seed=0)


def moved(step: TrainStep, data: Path, stage: Stage) -> set[str]:
    before = {name: x.detach().clone() for name, x in step.model.named_parameters()}
    step.step(batch_of(data), stage, 0.5)
    return {name for name, x in step.model.named_parameters() if not torch.equal(x, before[name])}


def test_who_learns_in_which_stage(corpus: Path) -> None:
    step = step_of(corpus)
    everything = {name for name, _ in step.model.named_parameters()}
    indexers = {name for name in everything if is_index_parameter(name)}
    assert indexers and indexers < everything
    assert (
        moved(step_of(corpus), corpus, Stage(stage="dense", tokens=1, lr=1e-2, train_indexer=False))
        == everything - indexers
    )
    assert moved(step_of(corpus), corpus, Stage(stage="dense", tokens=1, lr=1e-2)) == everything
    assert moved(step_of(corpus), corpus, Stage(stage="warmup", tokens=1, lr=1e-2)) == indexers
    assert moved(step_of(corpus), corpus, Stage(stage="sparse", tokens=1, lr=1e-2)) == everything


@pytest.mark.parametrize("stage", ["dense", "warmup", "sparse"])
def test_a_batch_cut_into_passes_gives_the_same_gradients(corpus: Path, stage: str) -> None:
    """Also where the passes hold different numbers of targets: every target of the batch weighs the same."""
    batch = batch_of(corpus)
    batch.targets[0, 5:] = -100
    captured = []
    for rows in (1, 2, 4):
        step = step_of(corpus, rows_at_once=rows, optimizer={"clip": 1e9})
        step.model.double()
        gradients: dict[str, torch.Tensor] = {}
        step.optimizers = []  # so that the gradients stay to be seen
        result = step.step(batch, Stage(stage=stage, tokens=1, lr=0.0), 0.5)
        for name, parameter in step.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        captured.append((result, gradients))
    (first, gradients), *others = captured
    assert gradients
    for result, theirs in others:
        assert result.loss == pytest.approx(first.loss, rel=1e-6)
        assert result.index_loss == pytest.approx(first.index_loss, rel=1e-6)
        assert gradients.keys() == theirs.keys()
        for name in gradients:
            torch.testing.assert_close(theirs[name], gradients[name], rtol=1e-6, atol=1e-10)


def test_the_learning_rate_follows_the_schedule(corpus: Path) -> None:
    stage = Stage(stage="dense", tokens=1, lr=1.0, warmup=0.1, decay=0.2, final_lr=0.1)
    factors = [stage.lr_factor(x) for x in (0.05, 0.1, 0.5, 0.79, 0.9, 1.0)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 0.55, 0.1])
    cosine = Stage(stage="dense", tokens=1, lr=1.0, schedule="cosine", warmup=0.1, final_lr=0.1)
    assert [cosine.lr_factor(x) for x in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1, 0.55, 0.1])
    step = step_of(corpus)
    result = step.step(batch_of(corpus), Stage(stage="dense", tokens=1, lr=2.0, index_lr=4.0, warmup=1.0), 0.25)
    assert result.lr == 0.5
    rates = {group["role"]: group["lr"] for optimizer in step.optimizers for group in optimizer.param_groups}
    assert rates == {"model": 0.5, "indexer": 1.0}


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_norms_escape_decay(corpus: Path, matrices: str) -> None:
    model = Transformer(recipe(corpus).model).init_weights(0)
    optimizers = build_optimizers(model, OptimizerConfig(matrices=matrices))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [(names[id(p)], group) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(name for name, _ in grouped) == sorted(names.values())
    for name, group in grouped:
        assert (group["weight_decay"] == 0) == (model.get_parameter(name).dim() == 1), name
        assert group["role"] == ("indexer" if ".indexer." in name else "model")


def test_a_recipe_that_cannot_be_carried_out_is_refused(corpus: Path) -> None:
    for changes, message in (
        ({"batch_tokens": 100}, "batch_tokens: 100 is not a multiple of context = 32"),
        ({"context": 128, "batch_tokens": 256}, "context: 128 exceeds model.max_position_embeddings = 64"),
        ({"model": {"index_topk": 48}}, "model.index_topk: 48 is larger than context = 32"),
        ({"model": {"index_topk": None}}, "a dense model .* has only dense stages"),
        ({"stages": []}, "stages: a recipe needs at least one stage"),
        ({"stages": [{"stage": "dense", "tokens": 1, "lr": 1, "warmup": 0.8, "decay": 0.3}]}, "warmup, decay"),
        ({"model": {"num_attention_heads": 3, "num_key_value_heads": 2, "attention": "gqa"}}, "num_attention_heads: 3"),
        ({"stage": []}, "stages"),
    ):
        with pytest.raises(UserError, match=message):
            recipe(corpus, **changes)


def test_the_embedding_has_its_own_rate(corpus: Path) -> None:
    step = step_of(corpus, optimizer={"embedding_lr_factor": 5.0})
    set_learning_rate(step.optimizers, Stage(stage="dense", tokens=1, lr=1e-2, index_lr=1e-3), 0.5)
    names = {id(x): name for name, x in step.model.named_parameters()}
    rates = {
        names[id(x)]: group["lr"]
        for optimizer in step.optimizers
        for group in optimizer.param_groups
        for x in group["params"]
    }
    assert rates.keys() == set(names.values())
    assert rates.pop("model.embed_tokens.weight") == pytest.approx(5e-2)
    assert {rate for name, rate in rates.items() if is_index_parameter(name)} == {1e-3}
    assert {rate for name, rate in rates.items() if not is_index_parameter(name)} == {1e-2}
