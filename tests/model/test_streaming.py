"""Experts on disk: the same logits as the model loaded whole, within the memory that was allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inazuma
from inazuma.errors import UserError
from inazuma.model import Transformer, checkpoint
from inazuma.model.disk import entries
from inazuma.model.streaming import load_streaming
from tests.model.test_families import CLASSES, pair
from tests.model.tiny import VOCABULARY, build, tiny, tokens

GIBIBYTE = 2**30
# Rows of whole 64 bytes, as published models have: products of rows that are not aligned may round differently.
MIXTURE = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "hidden_size": 64}


def streamed(folder: Path, slots: int) -> Transformer:
    """A model that holds so many experts, whatever the limit would leave."""
    model = load_streaming(folder, 4 * GIBIBYTE)
    resize = model.expert_cache.resize
    model.expert_cache.resize = lambda _: resize(slots)
    return model


@pytest.mark.parametrize("slots", [2, 3, 5, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["mla", "gqa"])
@torch.no_grad()
def test_same_bits_as_the_model_loaded_whole(attention, dtype, slots, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD", 50_000)
    topk = 12 if attention == "mla" else None
    config = tiny(**MIXTURE, attention=attention, index_topk=topk, tie_word_embeddings=attention == "gqa")
    build(config, dtype=dtype).save(tmp_path / "model")
    whole, model = inazuma.load(tmp_path / "model"), streamed(tmp_path / "model", slots)
    ids = tokens(2, 40)
    assert torch.equal(model(ids), whole(ids))
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    assert model.generate(prompts, 20) == whole.generate(prompts, 20)
    counts = model.expert_cache.counts
    assert 0 < counts.found < counts.used
    if slots == 100:  # everything fits: no expert is read twice
        assert counts.bytes_read <= 2 * 8 * 3 * 32 * 64 * dtype.itemsize


@pytest.mark.parametrize("family", [family for family in CLASSES if family not in ("llama", "qwen3")])
@torch.no_grad()
def test_every_family_with_experts(family, tmp_path):
    whole, _ = pair(family, 0, tmp_path)
    if all(not whole.config.has_experts(layer) for layer in range(whole.config.num_hidden_layers)):
        whole, _ = pair(family, 1, tmp_path)
    ids = torch.randint(4, 61, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = whole(ids)
    difference = (streamed(tmp_path, 3)(ids) - expected).abs().max().item()
    assert difference <= 1e-5 * expected.abs().max().item()


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path):
    build(tiny(**MIXTURE), dtype=torch.float32).save(tmp_path / "model")
    cache = streamed(tmp_path / "model", 3).expert_cache
    cache.resize(3)

    def visit(*experts: int, guesses=()) -> tuple[list[int], int]:
        """In which order they came, and how many of them were there."""
        before = cache.counts.found
        return [expert for expert, _ in cache.visit(1, experts, guesses)], cache.counts.found - before

    assert visit(0, 1, 2) == ([0, 1, 2], 0)
    assert visit(0, 1) == ([0, 1], 2)
    assert visit(5) == ([5], 0)  # in the place of 2
    assert visit(1, 2, 0) == ([1, 0, 2], 2)  # what is there comes first; 2 takes the place of 5
    assert visit(5) == ([5], 0)
    assert visit(5, guesses=[(2, 7)]) == ([5], 1)
    assert [expert for expert, _ in cache.visit(2, [7])] == [7] and cache.counts.guessed == 1
    weights = load_file(tmp_path / "model/model.safetensors")
    for expert, (gate, up, down) in cache.visit(2, range(8)):
        for name, x in (("gate", gate), ("up", up), ("down", down)):
            assert torch.equal(x, weights[f"model.layers.2.mlp.experts.{expert}.{name}_proj.weight"])


# A process of its own: the limit is on all of it. 150 MB of experts, of which a part fits.
GENERATE = """
import json, sys, torch
from inazuma.model.streaming import load_streaming
from inazuma.runs.surroundings import resident
torch.set_num_threads(1)
before = resident()
model = load_streaming(sys.argv[1], before + int(sys.argv[2]))
ids = model.generate([[1, 2, 3]], 12)
print(json.dumps([ids, resident("VmHWM") - before, model.expert_cache.slots]))
"""


def test_a_process_stays_within_its_limit(tmp_path):
    config = tiny(
        n_routed_experts=32, num_experts_per_tok=4, moe_intermediate_size=512, hidden_size=512, first_k_dense_replace=0
    )
    model = build(config, dtype=torch.bfloat16)
    model.save(tmp_path / "model")
    assert sum(x.nbytes for name, x in model.named_parameters() if ".experts." in name) > 150_000_000
    command = [sys.executable, "-c", GENERATE, str(tmp_path / "model"), "340_000_000"]
    ids, added, slots = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert ids == model.generate([[1, 2, 3]], 12)
    assert added < 340_000_000 and 2 < slots < 60


def test_what_does_not_fit_is_refused_with_the_number_that_does(tmp_path):
    build(tiny(**MIXTURE), dtype=torch.float32).save(tmp_path / "model")
    with pytest.raises(UserError, match=r"memory: 10 MB are too few, \d+ MB are needed"):
        load_streaming(tmp_path / "model", 10_000_000)
    model = load_streaming(tmp_path / "model", 4 * GIBIBYTE)
    with pytest.raises(UserError, match="too few"):  # a text whose cache does not fit
        model.generate([[1]] * 100_000, 100)
    with pytest.raises(UserError, match="cannot be saved"):
        model.save(tmp_path / "again")
    build(tiny(), dtype=torch.float32).save(tmp_path / "dense")
    with pytest.raises(UserError, match="no routed experts"):
        load_streaming(tmp_path / "dense", GIBIBYTE)


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, VOCABULARY), "b": torch.ones(5)}, file)
    found = entries(file)
    assert torch.equal(found["b"].read(), torch.ones(5)) and found["a"].shape == (3, VOCABULARY)
    whole = file.read_bytes()
    for damage in (b"", whole[:6], whole[:-1], b"\xff" * 8 + whole[8:], whole[:9] + b"?" + whole[10:]):
        file.write_bytes(damage)
        with pytest.raises(UserError, match="damaged"):
            entries(file)
    with pytest.raises(UserError, match="no such file"):
        entries(tmp_path / "other.safetensors")
