from __future__ import annotations

import argparse
import json

import pytest

from inazuma.cli import data
from inazuma.data.shards import Dataset
from tests.data.corpora import texts, write_json_lines


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return data.run(parser.parse_args([str(word) for word in words]))


def test_build_prints_a_summary(tmp_path, capsys):
    source = write_json_lines(tmp_path / "a.jsonl", [*texts(50), *texts(4), ""], field="body")
    options = ["--vocab-size", 260, "--validation-fraction", 0.3, "--text-field", "body"]
    assert call("build", source, "--out", tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    dataset = Dataset.open(tmp_path / "out", verify=True)
    assert dataset.vocab_size == 260
    train = next(line.split() for line in printed.splitlines() if line.startswith("train "))
    assert train[1] == f"{dataset.train.documents}" and train[3] == f"{dataset.train.tokens:,}"
    assert "4 exact duplicates dropped" in printed and "1 empty documents dropped" in printed
    assert "skipped" not in printed


def test_json_is_the_manifest_and_nothing_else(tmp_path, capsys):
    source = write_json_lines(tmp_path / "a.jsonl", texts(50))
    options = ["--vocab-size", 260, "--validation-fraction", 0.3, "--json"]
    assert call("build", source, "--out", tmp_path / "out", *options) == 0
    assert json.loads(capsys.readouterr().out) == Dataset.open(tmp_path / "out").manifest


def test_a_tokenizer_and_a_vocabulary_size_exclude_each_other(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        call("build", tmp_path, "--out", tmp_path / "out", "--vocab-size", 300, "--tokenizer", "t.json")
    assert caught.value.code == 2 and "not allowed with" in capsys.readouterr().err
