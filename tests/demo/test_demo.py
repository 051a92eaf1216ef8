"""The demo end to end, made so small that it takes seconds: what it leaves, and that every figure can be recomputed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inazuma
from inazuma.demo import demo
from inazuma.demo.corpus import PACKAGES, package_sources
from inazuma.demo.demo import DemoSize, run_demo
from inazuma.errors import RunError, UserError
from inazuma.model.text import tokenizer_of
from inazuma.runs.run import Run
from inazuma.runs.verify import verify

TINY = DemoSize(
    vocab_size=300,
    context=64,
    topk=16,
    dense_tokens=1024,
    warmup_tokens=512,
    sparse_tokens=1024,
    batch_tokens=128,
    validation_tokens=4000,
    validation_fraction=0.2,
    selection_windows=8,
    hidden_size=32,
    layers=2,
    sample_tokens=8,
)
WORDS = ["def", "return", "class", "稲妻", "self", "value", "x", "=", "(", ")", ":\n    ", "\n", "for", "in", "🌩"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    words = random.Random(0)
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(" ".join(words.choices(WORDS, k=words.randint(40, 200))))
    return folder


@pytest.fixture(scope="module")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "demo"
    return out, run_demo(out, data=[texts], command=["inazuma", "demo"], size=TINY)


def test_it_leaves_what_it_promises(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    assert result == json.loads((out / "result.json").read_text())
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert {"sparse", "dense", "ngram", "gzip"} == result["bits_per_byte"].keys()
    assert all(0 < value < 20 for value in result["bits_per_byte"].values())
    assert {"dense", "ngram", "gzip"} == result["difference"].keys()
    for name in ("recall_at_k", "attention_mass"):
        assert len(result[name]) == TINY.layers and all(0 <= value <= 1 for value in result[name])
    assert result["context"] == 64 and result["topk"] == 16
    assert result["training_tokens"] == TINY.tokens
    assert result["parameters"] == sum(x.numel() for x in inazuma.load(out / "model").parameters())
    assert result["seconds"] > 0 and result["tokens_per_second"] > 0


def test_every_figure_is_recomputed_from_the_records(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    checks = verify(out)
    assert {"bits_per_byte.sparse", "recall_at_k.1", "result.json", "records/layers.jsonl"} <= {c.name for c in checks}
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
    assert Run.open(out).manifest["status"] == "finished"


def test_both_were_trained_on_the_same_tokens_from_the_same_weights(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    lines = {name: [x for x in Run.open(out / name).metrics() if x["kind"] == "train"] for name in ("sparse", "dense")}
    assert lines["sparse"][-1]["tokens"] == lines["dense"][-1]["tokens"] == TINY.tokens
    assert [x["stage"] for x in lines["sparse"]] == ["dense"] * 8 + ["warmup"] * 4 + ["sparse"] * 8
    # No rate differs while both are dense, so neither does any loss: a twin in everything but the selection.
    for column in ("loss", "lr"):
        sparse, dense = ([x[column] for x in lines[name][:8]] for name in ("sparse", "dense"))
        assert sparse == pytest.approx(dense)


def test_the_baselines_are_taken_of_the_same_documents(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    records = {
        name: [json.loads(line) for line in (out / f"records/documents.{name}.jsonl").read_text().splitlines()]
        for name in result["bits_per_byte"]
    }
    documents = {name: [(x["document"], x["bytes"]) for x in lines] for name, lines in records.items()}
    assert all(found == documents["sparse"] for found in documents.values())
    for name, lines in records.items():
        bits = sum(x["nll"] for x in lines) / math.log(2) / sum(x["bytes"] for x in lines)
        assert result["bits_per_byte"][name] == pytest.approx(bits, rel=1e-9)


def test_transformers_reads_the_checkpoint_as_it_is(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    assert json.loads((out / "model/config.json").read_text())["model_type"] == "deepseek_v32"
    theirs, info = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not any(info.values()), info
    ours = inazuma.load(out / "model")
    text = "def return 稲妻 (x): 🌩"
    ids = tokenizer_of(ours).encode(text, add_special_tokens=False).ids
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids and tokenizer.decode(ids) == text
    with torch.no_grad():
        below = torch.tensor([ids[:12]])
        assert (theirs.eval()(below).logits - ours(below)).abs().max() <= 1e-4


def test_the_picture_shows_the_selection_of_the_saved_model(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    record = json.loads((out / "records/selection.json").read_text())
    for query in record["queries"]:
        assert len(query["selected"]) == min(TINY.topk, query["position"] + 1)
        assert max(query["selected"]) <= query["position"]
        assert sum(query["attention"]) == pytest.approx(1, abs=1e-4)


def test_a_folder_that_exists_is_kept(finished: tuple[Path, dict[str, Any]], texts: Path) -> None:
    out, _ = finished
    before = (out / "result.json").read_bytes()
    with pytest.raises(UserError, match="exists"):
        run_demo(out, data=[texts], command=["inazuma", "demo"], size=TINY)
    assert (out / "result.json").read_bytes() == before


def test_a_failure_is_recorded(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(demo, "measure", fail)
    with pytest.raises(RunError, match="the disk is full"):
        run_demo(tmp_path / "demo", data=[texts], command=["inazuma", "demo"], size=TINY)
    manifest = Run.open(tmp_path / "demo").manifest
    assert manifest["status"] == "failed" and manifest["error"] == "the disk is full"
    assert not (tmp_path / "demo/result.json").exists()


def test_the_built_in_corpus_is_there_and_pinned() -> None:
    files, versions = package_sources()
    assert versions.keys() == set(PACKAGES)
    pins = dict(line.split("==") for line in Path("constraints.txt").read_text().split() if "==" in line)
    assert versions == {name: pins[name] for name in PACKAGES}
    size = sum(file.stat().st_size for file in files)
    assert size > 5_000_000 and all(file.suffix == ".py" for file in files)
