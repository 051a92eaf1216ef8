"""What goes wrong in a training is said in one line, and loses nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inazuma.errors import RunError, UserError
from inazuma.runs.run import Run
from inazuma.train import state
from inazuma.train.trainer import Trainer
from tests.train.recipes import assert_same_bits, recipe, train, weights


@pytest.mark.parametrize(
    ("poison", "named"),
    [
        ("model.layers.1.mlp.up_proj.weight", "the output of model.layers.1.mlp.up_proj"),
        ("model.layers.0.self_attn.indexer.wk.weight", "the output of model.layers.0.self_attn.indexer.wk"),
    ],
)
def test_a_loss_that_is_not_finite_names_step_documents_and_layer(
    corpus: Path, tmp_path: Path, poison: str, named: str
) -> None:
    trainer = Trainer.start(recipe(corpus), tmp_path / "run", command=["test"])

    def watch(line: dict) -> None:
        if line["kind"] == "train" and line["step"] == 4:  # after the checkpoint of step 3
            with torch.no_grad():
                trainer.train_step.model.get_parameter(poison)[0, 0] = float("nan")

    with pytest.raises(RunError) as failure:
        trainer.train(watch)
    message = str(failure.value)
    assert message.startswith("step 5: the loss or a gradient is not finite, first in " + named)
    assert ".txt" in message and "\n" not in message
    assert str(state.checkpoints(tmp_path / "run")[-1]) in message
    manifest = Run.open(tmp_path / "run").manifest
    assert manifest["status"] == "failed" and manifest["error"] == message


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer.start(recipe(corpus), tmp_path / "run", command=["test"])
    before = weights(trainer)
    target = trainer.train_step.model.model.layers[1].mlp.down_proj.weight
    target.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"the gradient of model\.layers\.1\.mlp\.down_proj\.weight"):
        trainer.train()
    assert_same_bits(weights(trainer), before)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(corpus)
    trainer = Trainer.start(config, tmp_path / "run", command=["test"])
    write = state.save_file

    def full_after_the_first(tensors: dict, path: Path) -> None:
        if state.checkpoints(tmp_path / "run"):
            path.write_bytes(b"half a che")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(tensors, path)

    monkeypatch.setattr(state, "save_file", full_after_the_first)
    with pytest.raises(RunError, match=r"step-00000004: .*No space left.*the last good one is .*step-00000003"):
        trainer.train()
    assert Run.open(tmp_path / "run").manifest["status"] == "failed"
    assert not list((tmp_path / "run").rglob(".partial-*"))
    monkeypatch.undo()
    resumed = Trainer.resume(tmp_path / "run")
    assert resumed.step == 3
    resumed.train()
    assert_same_bits(weights(resumed), weights(train(config, tmp_path / "whole")))


def test_data_that_do_not_fit_are_refused_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"model": {"vocab_size": 299}}, "model.vocab_size: is 299"),
        ({"model": {"eos_token_id": 5}}, "model.eos_token_id: is 5"),
    ):
        with pytest.raises(UserError, match=message):
            Trainer.start(recipe(corpus, **changes), tmp_path / "run", command=["test"])
    with pytest.raises(UserError, match="nowhere"):
        Trainer.start(recipe(corpus / "nowhere"), tmp_path / "run", command=["test"])
    assert not (tmp_path / "run").exists()


def test_a_corrupt_shard_is_refused(corpus: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(corpus, copy)
    shard = copy / "train.tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train\.tokens-00000\.bin"):
        Trainer.start(recipe(copy), tmp_path / "run", command=["test"])


def test_the_final_model_is_the_trained_one(corpus: Path, tmp_path: Path) -> None:
    trainer = train(recipe(corpus), tmp_path / "run")
    assert_same_bits(load_file(tmp_path / "run/model/model.safetensors"), weights(trainer))
    assert (tmp_path / "run/model/tokenizer.json").exists()
