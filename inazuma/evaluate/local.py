"""A checkpoint on this machine: its answers, and what it thinks of a text, token by token.

Every prompt is computed alone. Batch mates and guessed tokens may change the last bit of a logit, and where two tokens
are that close an answer: alone, an answer depends on nothing but its prompt, and a run evaluated twice gives the same
bits. Many prompts at once are what `inazuma serve` is for; its address can be evaluated too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import inazuma
from inazuma.errors import UserError
from inazuma.evaluate.answering import Reply
from inazuma.files import sha256
from inazuma.model.checkpoint import weight_files
from inazuma.model.text import tokenizer_of

WINDOW = 2048
"""Tokens of a text that are read together, where the model has as many positions."""
_ROWS = 256
"""Positions whose logits are laid out at a time."""


class LocalModel:
    """A checkpoint that `inazuma.load` reads, with its tokenizer."""

    at_once = 1
    batch_size = 1

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.model = inazuma.load(self.path, device="cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = tokenizer_of(self.model)
        config = self.model.config
        self.positions: int = config.max_position_embeddings
        begin = config.bos_token_id
        if begin is None:
            begin = min(config.stop_ids, default=None)
        if begin is None:
            raise UserError(f"{self.path}: neither a token that begins a text nor one that ends it is known")
        self.begin: int = begin
        """Stands before every text: the beginning's token, or for a model that has none the end of the text before."""
        self._stops: dict[tuple[str, ...], frozenset[int]] = {}

    def facts(self) -> dict[str, Any]:
        """The folder and the SHA-256 of its weights, configuration and tokenizer."""
        files = [*weight_files(self.path), self.path / "config.json", self.path / "tokenizer.json"]
        return {
            "kind": "checkpoint",
            "path": str(self.path),
            "files": {file.name: sha256(file) for file in files},
            "positions": self.positions,
            "dtype": str(self.model.lm_head.weight.dtype).removeprefix("torch."),
        }

    def encode(self, text: str) -> list[int]:
        """The text's tokens, without any that begin or end it."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode(text))

    def answer(self, prompt: str, *, max_tokens: int, stop: str | None, seed: int) -> Reply:
        """See `Answering.answer`. The likeliest tokens are taken, so the seed changes nothing."""
        return self.continued([self.begin, *self.encode(prompt)], max_tokens, [stop] if stop else [])

    def continued(self, ids: Sequence[int], max_tokens: int, until: Sequence[str]) -> Reply:
        """What follows `ids`, cut at the first text of `until`."""
        ends = self.model.config.stop_ids
        stops = ends | self._tokens_with(tuple(until))
        [row] = self.model.generate([list(ids)], max_tokens, stop=stops, speculative=False)
        new = row[len(ids) :]
        ended = bool(new) and new[-1] in ends
        text = self.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=False)
        found = [place for place in (text.find(mark) for mark in until if mark) if place >= 0]
        return Reply(
            text=text[: min(found)] if found else text,
            stop_reason="stop" if ended or found else "length",
            prompt_tokens=len(ids),
            generated_tokens=len(new),
            dropped=0,
        )

    def _tokens_with(self, until: tuple[str, ...]) -> Collection[int]:
        """The tokens whose text holds one of `until`: behind them nothing counts any more."""
        if until not in self._stops:
            size = min(self.tokenizer.get_vocab_size(), self.model.config.vocab_size)
            texts = ((i, self.tokenizer.decode([i], skip_special_tokens=False)) for i in range(size) if any(until))
            self._stops[until] = frozenset(i for i, text in texts if any(mark and mark in text for mark in until))
        return self._stops[until]

    @torch.inference_mode()
    def losses(self, ids: Sequence[int], start: int) -> tuple[np.ndarray, np.ndarray]:
        """(nats, whether it is the likeliest) of each of `ids[start:]` given all before it, float64 and bool.

        All of `ids` must fit the model's positions; `start` is at least 1.
        """
        device = next(self.model.parameters()).device
        tokens = torch.tensor([list(ids)], device=device)
        hidden, _, _ = self.model.read(tokens[:, :-1])
        nats, best = [], []
        for at in range(start - 1, len(ids) - 1, _ROWS):
            stop = min(at + _ROWS, len(ids) - 1)
            logits = self.model.lm_head(hidden[0, at:stop]).double()
            following = tokens[0, at + 1 : stop + 1]
            chosen = logits.gather(-1, following[:, None])[:, 0]
            nats.append((logits.logsumexp(-1) - chosen).cpu().numpy())
            best.append((logits.argmax(-1) == following).cpu().numpy())
        return np.concatenate(nats), np.concatenate(best)

    def text_nats(self, text: str) -> tuple[float, int]:
        """(nats, tokens) of a text that follows the token that begins one; the end of the text is not counted.

        A text longer than the window is read in windows that overlap by half: behind the first one, every token sees at
        least half a window before it.
        """
        ids = [self.begin, *self.encode(text)]
        window = min(WINDOW, self.positions)
        nats, done = [], 1
        while done < len(ids):
            low = 0 if done == 1 else done - window // 2
            high = min(len(ids), low + window)
            nats += self.losses(ids[low:high], done - low)[0].tolist()
            done = high
        return math.fsum(nats), len(ids) - 1
