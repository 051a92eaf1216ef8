"""A preset becomes a recipe, and what it trains is read by others."""

from __future__ import annotations

import json

from transformers import AutoModelForCausalLM

from inazuma.cli import main
from inazuma.config import load
from inazuma.data.shards import Dataset
from inazuma.model.presets import PRESETS
from inazuma.train.recipe import TrainConfig


def test_the_list_and_a_recipe(corpus, tmp_path, capsys):
    assert main(["presets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(PRESETS)
    assert main(["presets"]) == 0
    assert "air-nano-dsa" in capsys.readouterr().out
    assert main(["presets", "dsa-nano"]) == 2
    assert "--data" in capsys.readouterr().err
    for name in ("dsa-nano", "air-nano"):
        assert main(["presets", name, "--data", str(corpus)]) == 0
        file = tmp_path / f"{name}.yaml"
        file.write_text(capsys.readouterr().out)
        recipe = load(TrainConfig, file, [])
        assert recipe.model.vocab_size == Dataset.open(corpus).vocab_size
        assert recipe.model.n_routed_experts == 16


def test_a_preset_that_was_trained_is_read_by_transformers(corpus, tmp_path, capsys):
    for name, kind in (("air-nano", "Glm4Moe"), ("dsa-nano", "DeepseekV32")):
        assert main(["presets", name, "--data", str(corpus)]) == 0
        file = tmp_path / f"{name}.yaml"
        file.write_text(capsys.readouterr().out)
        stage = "{stage: dense, tokens: 64, lr: 1e-3}"
        changes = [f"stages=[{stage}]", "batch_tokens=64", "context=32", "model.num_hidden_layers=2"]
        changes += ["validation_tokens=64"] + (["model.index_topk=16"] if name == "dsa-nano" else [])
        arguments = [word for change in changes for word in ("--set", change)]
        assert main(["train", str(file), "--out", str(tmp_path / name), *arguments]) == 0
        capsys.readouterr()
        theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / name / "model", output_loading_info=True)
        assert type(theirs).__name__ == f"{kind}ForCausalLM" and not any(info.values())
