"""A tiny checkpoint with a tokenizer, and models that answer as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inazuma.data.tokenizer import Sample, save_tokenizer, train_tokenizer
from inazuma.evaluate.answering import Reply
from inazuma.evaluate.tasks.haystack import sentence
from tests.model.tiny import build, tiny


def make_checkpoint(folder: Path, seed: int = 0, vocabulary: int = 400) -> Path:
    """A model folder: random weights, and a byte-level tokenizer that knows the haystacks' words."""
    random = np.random.Generator(np.random.PCG64(0))
    text = "\n".join(sentence(random) for _ in range(200))
    sample = Sample()
    sample.offer(1, text, len(text))
    tokenizer = train_tokenizer(sample, vocabulary)
    config = tiny(
        vocab_size=vocabulary, max_position_embeddings=1024, num_hidden_layers=1, eos_token_id=0, bos_token_id=None
    )
    build(config, seed=seed, dtype=torch.float32).save(folder)
    save_tokenizer(tokenizer, "<|endoftext|>", folder, given=None)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six documents, of which the first is longer than the model's positions."""
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.Generator(np.random.PCG64(1))
    for number in range(6):
        lines = [sentence(random) for _ in range(45 if number == 0 else 3 + number)]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n雷", encoding="utf-8")
    return folder


@dataclass
class Scripted:
    """A model that answers by a function of the prompt and the limit."""

    reply: Callable[[str, int], Reply]
    name: str = "scripted"
    at_once: int = 1
    batch_size: int | None = 1
    positions: int | None = None
    asked: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return {"kind": "checkpoint", "path": self.name}

    def count(self, text: str) -> int:
        return len(text.split())

    def answer(self, prompt: str, *, max_tokens: int, stop: str | None, seed: int) -> Reply:
        self.asked.append(prompt)
        return self.reply(prompt, max_tokens)
