from __future__ import annotations

from pathlib import Path

import pytest

from inazuma.data import build as builder
from inazuma.data.shards import Dataset
from tests.data.corpora import texts, write_json_lines


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """300 documents in shards of 1,000 tokens, so that documents and windows cross shard files."""
    folder: Path = tmp_path_factory.mktemp("dataset")
    source = write_json_lines(folder / "corpus.jsonl", texts(300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_TOKENS", 1000)
        builder.build([source], folder / "out", vocab_size=300, validation_fraction=0.2)
    return Dataset.open(folder / "out", verify=True)
