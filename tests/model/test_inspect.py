"""The report on a checkpoint, against the model that it loads as; and one line for what is none."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch

import inazuma
from inazuma import cli
from inazuma.model import Cache
from inazuma.model.convert import convert
from inazuma.model.inspect import USABLE, inspect
from tests.model.convert.models import KINDS, VOCABULARY, model_of


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_counts_what_the_model_has(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    model = model_of(kind, tmp_path / "tokenizer", torch.bfloat16)
    model.save(tmp_path / "model")
    report = inspect(tmp_path / "model")
    config = model.config
    values = {name: x for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        del values["lm_head.weight"]
    total = sum(x.numel() for x in values.values())
    idle = sum(
        x.numel() * (config.n_routed_experts - config.num_experts_per_tok) // config.n_routed_experts
        for name, x in values.items()
        if ".mlp.experts." in name
    )
    assert report["parameters"] == {"total": total, "active": total - idle}
    assert report["bytes"] == sum(x.numel() * x.element_size() for x in values.values())
    assert sum(row["parameters"] for row in report["tensors"]) == total
    assert "other" not in {row["kind"] for row in report["tensors"]}
    parts = {row["kind"]: 0 for row in report["tensors"]}
    for row in report["tensors"]:
        parts[row["kind"]] += row["parameters"]
    assert parts.get("indexer", 0) == sum(x.numel() for name, x in values.items() if ".indexer." in name)
    router = sum(x.numel() for name, x in values.items() if ".mlp.gate." in name)
    assert parts.get("router", 0) == router
    cache = Cache(1, 8)
    model(torch.arange(8)[None], cache=cache)
    kept = sum(buffer.numel() * buffer.element_size() for buffer in cache._buffers.values())
    assert report["cache_bytes_per_token"] == kept / 8
    assert report["contains"] == {
        "tokenizer": VOCABULARY,
        "indexer": config.index_topk is not None,
        "routed experts": config.n_routed_experts is not None,
        "multi-token prediction": False,
    }
    # The same model as GGUF is the same but for the names and what is stored in float32.
    convert(tmp_path / "model", tmp_path / "model.gguf", to="gguf")
    other = inspect(tmp_path / "model.gguf")
    scaling = 8 if kind == "llama-tied-scaled" else 0  # there a tensor
    assert other["parameters"]["total"] == total + scaling
    for name in ("context", "layers", "cache_bytes_per_token", "contains"):
        assert other[name] == report[name], name
    assert parts.get("indexer", 0) == sum(row["parameters"] for row in other["tensors"] if row["kind"] == "indexer")


def test_deepseeks_layout_is_the_same_model(tmp_path: Path) -> None:
    model_of("deepseek_v32", tmp_path, torch.bfloat16).save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "theirs", to="deepseek")
    ours, theirs = inspect(tmp_path / "model"), inspect(tmp_path / "theirs")
    for name in ours.keys() - {"path", "format"}:
        assert ours[name] == theirs[name], name


def test_only_headers_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of 600 GB, all hole, is inspected at once; it does not fit."""
    model_of("llama", tmp_path).save(tmp_path / "model")
    rows, width = 3_000_000, 100_000
    size = 2 * rows * width
    header = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    file = tmp_path / "model/model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(file, 8 + len(text) + size)
    report = inspect(tmp_path / "model")
    assert report["bytes"] == size and report["fits"]["bfloat16"] == 0
    assert cli.main(["inspect", str(tmp_path / "model")]) == 0
    assert "does not fit" in capsys.readouterr().out


def test_what_fits_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_of("deepseek_v32", tmp_path).save(tmp_path / "model")
    total = inspect(tmp_path / "model")["parameters"]["total"]
    per_token = inspect(tmp_path / "model")["cache_bytes_per_token"]
    memory = int((2 * total + 100.5 * per_token) / USABLE)
    monkeypatch.setattr("inazuma.model.inspect.machine", lambda: {"memory": memory})
    assert inspect(tmp_path / "model")["fits"] == {"bfloat16": 100, "int8": 256, "int4": 256}


def test_a_family_that_is_not_known_is_reported_all_the_same(tmp_path: Path, capsys) -> None:
    model_of("llama", tmp_path).save(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    report = inspect(tmp_path / "model")
    assert report["family"] == "mamba" and "mamba" in report["problem"] and "fits" not in report
    assert cli.main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


MISTAKES = {
    "a truncated file": (cut, "", "model.safetensors: damaged"),
    "a missing file": (lambda folder: (folder / "model.safetensors").unlink(), "", "no such file"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "", "config.json: no such file"),
    "a folder of pickle": (pickled, "", "pytorch_model.bin: a pickle file"),
    "a pickle file": (lambda folder: (folder / "a.pt").write_bytes(b"\x80"), "a.pt", "a.pt: a pickle file"),
    "another file": (lambda folder: None, "config.json", "not a checkpoint"),
    "nothing": (lambda folder: None, "nowhere", "no such file or folder"),
    "a truncated GGUF": (lambda folder: (folder / "a.gguf").write_bytes(b"GGUF\3\0\0"), "a.gguf", "damaged"),
}


@pytest.mark.parametrize(("damage", "name", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(damage, name: str, said: str, tmp_path: Path, capsys) -> None:
    model_of("llama", tmp_path).save(tmp_path / "model")
    damage(tmp_path / "model")
    assert cli.main(["inspect", str(tmp_path / "model" / name)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_the_table_shows_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("glm_moe_dsa", tmp_path).save(tmp_path / "model")
    assert inazuma.load(tmp_path / "model").config.index_topk == 24
    assert cli.main(["inspect", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    for part in ("glm_moe_dsa", "active for each token", "indexer", "routed experts", "256 tokens, 3 layers", "int4"):
        assert part in printed
