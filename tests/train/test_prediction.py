"""Training the layers for multi-token prediction: targets, loss, and that without them nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inazuma.data.batches import IGNORE, Batch, evaluation_windows, training_windows
from inazuma.data.shards import Dataset
from inazuma.errors import RunError, UserError
from inazuma.model import Transformer
from inazuma.model.prediction import Acceptance
from inazuma.train.optimizer import is_index_parameter
from inazuma.train.recipe import Stage
from inazuma.train.step import TrainStep, targets_ahead
from inazuma.train.validate import document_losses
from tests.train.recipes import CONTEXT, assert_same_bits, recipe, train, weights

DENSE = {"index_topk": None}
ONE_STAGE = [{"stage": "dense", "tokens": 5 * 4 * CONTEXT, "lr": 3e-3}]


def batch_of(data: Path, rows: int = 4) -> Batch:
    return training_windows(Dataset.open(data).train, context=CONTEXT, position=0, count=rows, seed=0)


def step_of(data: Path, depths: int, model: dict | None = None, **changes) -> TrainStep:
    config = recipe(data, model={"num_nextn_predict_layers": depths} | (model or {}), **changes)
    return TrainStep(Transformer(config.model).init_weights(0), config)


def alone(batch: Batch) -> list[list[int]]:
    """Each document's tokens in each row, and the target of the last."""
    pieces = []
    for ids, targets, document in zip(batch.ids, batch.targets, batch.document, strict=True):
        for number in np.unique(document[document >= 0]):
            here = np.flatnonzero(document == number)
            pieces.append([*ids[here].tolist(), int(targets[here[-1]])])
    return pieces


@pytest.mark.parametrize("depth", [1, 2, CONTEXT + 1])
def test_targets_stay_in_their_document(corpus: Path, depth: int) -> None:
    batch = batch_of(corpus, -(-Dataset.open(corpus).train.tokens // CONTEXT))
    assert (batch.document < 0).any() and (batch.first > 0).any()  # padding, and several documents in a row
    found = targets_ahead(torch.from_numpy(batch.targets), torch.from_numpy(batch.first), depth).numpy()
    expected = np.full_like(batch.targets, IGNORE)
    for row in range(len(batch.ids)):
        for t in range(CONTEXT - depth):
            if batch.document[row, t] == batch.document[row, t + depth] >= 0:
                expected[row, t] = batch.targets[row, t + depth]
    assert np.array_equal(found, expected)
    assert (found != IGNORE).any() == (depth < CONTEXT)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_loss_is_the_mean_over_documents_read_alone(corpus: Path, rows: int) -> None:
    """Equation 25, of gradients too; also where a batch is cut into passes."""
    step = step_of(corpus, 2, DENSE, stages=ONE_STAGE, rows_at_once=rows, mtp_weight=0.5, optimizer={"clip": 1e9})
    model = step.model.double()
    batch = batch_of(corpus)
    step.zero_grad, step.optimizers = lambda: None, []
    result = step.step(batch, Stage(stage="dense", tokens=1, lr=0.0), 0.5)
    found = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()

    sums, counts = [0.0] * 3, [0] * 3
    for piece in alone(batch):
        ids = torch.tensor([piece])
        logits, ahead = model(ids[:, :-1], output_predictions=True)
        for depth, x in enumerate((logits, *ahead)):
            goals = ids[0, depth + 1 :]
            sums[depth] += -x[0, : len(goals)].log_softmax(-1).gather(1, goals[:, None]).sum()
            counts[depth] += len(goals)
    means = [total / n for total, n in zip(sums, counts, strict=True)]
    assert result.loss == pytest.approx(means[0].item(), rel=1e-6)
    assert result.mtp_loss == pytest.approx([x.item() for x in means[1:]], rel=1e-6)
    (means[0] + 0.5 / 2 * (means[1] + means[2])).backward()
    for name, x in model.named_parameters():
        assert x.grad.abs().max() > 0
        torch.testing.assert_close(found[name], x.grad, rtol=0, atol=1e-5 * x.grad.abs().max().item())


def test_who_learns_in_which_stage(corpus: Path) -> None:
    for stage, wanted in (("dense", "all"), ("warmup", "indexers"), ("sparse", "all")):
        step = step_of(corpus, 1)
        before = {name: x.detach().clone() for name, x in step.model.named_parameters()}
        result = step.step(batch_of(corpus), Stage(stage=stage, tokens=1, lr=1e-2), 0.5)
        moved = {name for name, x in step.model.named_parameters() if not torch.equal(x, before[name])}
        assert moved == {name for name in before if wanted == "all" or is_index_parameter(name)}
        assert len(result.index_loss) == 3 and len(result.mtp_loss) == 1


def test_without_layers_or_weight_training_is_what_it_was(corpus: Path, tmp_path: Path) -> None:
    plain = train(recipe(corpus), tmp_path / "plain")
    unused = train(recipe(corpus, {"num_nextn_predict_layers": 1}, mtp_weight=0.0), tmp_path / "unused")
    model, behind = weights(unused), "model.layers.2."
    fresh = Transformer(unused.config.model).init_weights(unused.config.seed).state_dict()
    assert_same_bits({k: x for k, x in model.items() if not k.startswith(behind)}, weights(plain))
    assert_same_bits(*({k: x for k, x in y.items() if k.startswith(behind)} for y in (model, fresh)))
    lines = [lines_of(tmp_path / name) for name in ("plain", "unused")]
    for a, b in zip(*lines, strict=True):
        different = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert different <= {"tokens_per_second", "time"}
    # With a weight it is another training, or this test would say nothing.
    used = train(recipe(corpus, {"num_nextn_predict_layers": 1}), tmp_path / "used")
    assert not torch.equal(weights(used)["lm_head.weight"], model["lm_head.weight"])


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_losses_are_recorded_and_an_interruption_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    config = recipe(corpus, {"num_nextn_predict_layers": 2})
    whole, parts = train(config, tmp_path / "whole"), train(config, tmp_path / "parts", stop_at=(5,))
    assert_same_bits(weights(parts), weights(whole))
    lines = [line for line in lines_of(tmp_path / "whole") if line["kind"] == "train"]
    assert all(len(line["mtp_loss"]) == 2 and len(line["index_loss"]) == 4 for line in lines)
    assert lines[-1]["mtp_loss"][0] < lines[0]["mtp_loss"][0]
    # Validation reads the model's own head: a model without the other layers gets the same bits.
    judged = [line for line in lines_of(tmp_path / "whole") if line["kind"] == "validation"][-1]
    assert len(judged["recall_at_k"]) == 2
    model = whole.train_step.model
    main = Transformer(recipe(corpus).model)
    main.load_state_dict({name: model.state_dict()[name] for name in main.state_dict()})
    split = Dataset.open(corpus).validation
    batches = evaluation_windows(split, context=CONTEXT, rows=2, max_tokens=400)
    assert document_losses(main, split, batches, stage="frozen").bits_per_byte == judged["bits_per_byte"]


def test_a_layer_that_overflows_is_named(corpus: Path) -> None:
    step = step_of(corpus, 1)
    with torch.no_grad():
        step.model.get_parameter("model.layers.2.eh_proj.weight")[0, 0] = torch.nan
    with pytest.raises(RunError, match=r"first in the output of model\.layers\.2\.eh_proj"):
        step.step(batch_of(corpus), Stage(stage="dense", tokens=1, lr=1e-2), 0.5)


def test_a_weight_needs_layers(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"mtp_weight: the model has no such layers; set model\.num_nextn_predict"):
        recipe(corpus, mtp_weight=0.3)
    with pytest.raises(UserError, match="mtp_weight: must not be negative"):
        recipe(corpus, {"num_nextn_predict_layers": 1}, mtp_weight=-0.1)
    assert recipe(corpus).prediction_weight == recipe(corpus, mtp_weight=0.0).prediction_weight == 0
    with_layers = {"num_nextn_predict_layers": 1}
    assert recipe(corpus, with_layers).prediction_weight == 0.3
    assert recipe(corpus, with_layers, mtp_weight=0.1).prediction_weight == 0.1


def test_guesses_of_a_trained_model_are_accepted(corpus: Path, tmp_path: Path) -> None:
    stages = [{"stage": "dense", "tokens": 150 * 4 * CONTEXT, "lr": 3e-3, "decay": 0.5}]
    small = DENSE | {"num_nextn_predict_layers": 1}
    changes = {"stages": stages, "validate_every": 1000, "checkpoint_every": 1000}
    model = train(recipe(corpus, small, **changes), tmp_path / "run").train_step.model.eval()
    prompts = [piece[:6] for piece in alone(batch_of(corpus, 12)) if len(piece) > 6][:6]
    for options in ({}, {"temperature": 1.0}):
        count, plain = Acceptance(), Acceptance()
        text = model.generate(prompts, 40, stop=(), acceptance=count, **options)
        assert text == model.generate(prompts, 40, stop=(), speculative=False, acceptance=plain, **options)
        # By chance it would be one in 300; the batch as a whole ends with its slowest row.
        assert count.rate > 0.3 and count.passes < 0.8 * plain.passes
