"""A small corpus of generated text, and recipes that train on it in a second."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from inazuma.data.build import build

WORDS = ["the", "sparse", "model", "reads", "few", "tokens", "of", "a", "long", "text", "and", "learns", "稲妻", "⚡"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of 120 short documents, more than one epoch of which the recipes below read."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    for number in range(120):
        text = " ".join(words.choice(WORDS) for _ in range(words.randint(5, 60)))
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
    build([folder], folder / "data", vocab_size=300, validation_fraction=0.15)
    return folder / "data"
