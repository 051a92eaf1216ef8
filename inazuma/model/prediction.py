"""Drafting with the layers for multi-token prediction: guesses at the next tokens, which the model then verifies.

Suffixes: B rows, T tokens that were read at once, D layers for multi-token prediction, W tokens of a window, S places
of a row, E hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inazuma.model.cache import Cache

if TYPE_CHECKING:
    from inazuma.model.transformer import Transformer


@dataclass
class Acceptance:
    """What drafting was good for; `generate` adds to it."""

    passes: int = 0
    """Passes of the model after the prompts."""
    drafted: int = 0
    """Tokens that were guessed for rows not yet ended."""
    accepted: int = 0
    """How many of them became text: as many passes of their row were saved."""

    @property
    def rate(self) -> float:
        """accepted / drafted; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Drafter:
    """Guesses D tokens a row, where D is the number of the model's layers for multi-token prediction.

    The d-th layer joins the model's output at position t with token t + d, so at the end of a row it reads the guesses
    of the layers before it. What it has cached there is wrong once a guess was: the last D - 1 positions are read anew
    each time. A prompt must have at least D tokens.
    """

    def __init__(self, model: Transformer, text_BS: Tensor, lengths_B: Tensor):
        """`text_BS`: int64, the prompts and, behind them, what is known of the rows; guesses are written there too."""
        self.model, self.layers, self.text_BS = model, model.prediction_layers, text_BS
        self.cache = Cache(*text_BS.shape, text_BS.device)
        depth, width = len(self.layers), model.config.hidden_size
        self._start_B = lengths_B - depth
        """The position of the window's first token."""
        self._window_BWE = model.lm_head.weight.new_zeros(len(text_BS), depth, width)
        self._rows_B1 = torch.arange(len(text_BS), device=text_BS.device)[:, None]

    def read_prompt(self, start: int, hidden_BTE: Tensor) -> None:
        """Takes in the model's output at positions `start` to `start + T - 1` of every row; in order, none left out."""
        T = hidden_BTE.shape[1]
        self._read(hidden_BTE, start + torch.arange(T, device=hidden_BTE.device).expand(hidden_BTE.shape[:2]))
        at = self._start_B[:, None] + torch.arange(len(self.layers), device=hidden_BTE.device) - start
        here = ((at >= 0) & (at < T))[..., None]
        found = hidden_BTE[self._rows_B1, at.clamp(0, T - 1)]
        self._window_BWE = torch.where(here, found, self._window_BWE.to(found))

    def draft(self, hidden_BTE: Tensor | None, known_B: Tensor, draw: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The guesses, `[B,D]`; also written to `text_BS`.

        Args:
            hidden_BTE: the model's output at all positions that it read since the last call; None: since the prompts.
            known_B: how many tokens of each row are known: those that were read, and the one drawn after them.
            draw: chooses tokens `[B,T]` from logits `[B,T,V]`; told how many of each row came before, `[B]`.
        """
        if hidden_BTE is not None:
            self._window_BWE = torch.cat([self._window_BWE, hidden_BTE], dim=1)
        window_BWE, W = self._window_BWE, self._window_BWE.shape[1]
        at_BW = self._start_B[:, None] + torch.arange(W, device=known_B.device)
        self.cache.truncate(self._start_B)
        # Rows that have ended do not move on: what is guessed for them means nothing.
        last_B1 = (known_B - 2 - self._start_B).clamp(min=0)[:, None]

        def guess(depth: int, out_BWE: Tensor) -> None:
            before_B = known_B + depth - 1
            tokens_B1 = draw(self.model.lm_head(out_BWE[self._rows_B1, last_B1]), before_B)
            self.text_BS.scatter_(1, before_B[:, None], tokens_B1)

        self._read(window_BWE, at_BW, guess)
        depth = len(self.layers)
        kept = (known_B - depth - self._start_B)[:, None] + torch.arange(depth - 1, device=known_B.device)
        self._window_BWE, self._start_B = window_BWE[self._rows_B1, kept], known_B - depth
        return self.text_BS[self._rows_B1, known_B[:, None] + torch.arange(depth, device=known_B.device)]

    def _read(self, x_BTE: Tensor, at_BT: Tensor, guess: Callable[[int, Tensor], None] = lambda depth, x: None) -> None:
        config = self.model.config
        stage = "dense" if config.index_topk is None else "frozen"
        context = self.model.context(at_BT, None, self.cache, stage, config.index_topk is not None)
        for depth, layer in enumerate(self.layers, 1):
            ahead_BT = self.text_BS.gather(1, at_BT + depth)
            x_BTE, _ = layer(self.model.model.embed_tokens(ahead_BT), x_BTE, context)
            guess(depth, x_BTE)
        self.cache.advance(at_BT.shape[1])
