"""What decoding keeps of the tokens it has seen: per layer the attention's keys (a latent, in MLA) and index keys."""

from __future__ import annotations

import torch
from torch import Tensor

from inazuma.errors import UserError


class Cache:
    """Rows of different lengths, each written at its own end.

    A row's tokens occupy positions `0 .. lengths[row] - 1`. What lies behind is unfinished business (the padding of a
    shorter prompt) that no query sees, since a query sees keys up to its own position only, and that the next tokens
    overwrite.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device | str = "cpu"):
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.capacity = capacity
        self.longest = 0
        """Of `lengths`, kept apart so that decoding need not wait for the device."""
        self._buffers: dict[tuple[int, str], Tensor] = {}

    def positions(self, tokens: int) -> Tensor:
        """The positions of the next `tokens` tokens of each row, `[B,tokens]`."""
        if self.longest + tokens > self.capacity:
            raise UserError(
                f"the cache holds {self.capacity} tokens, {self.longest} are there and {tokens} were to come; "
                "make it larger or the text shorter"
            )
        return self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)

    def write(self, layer: int, name: str, x: Tensor) -> Tensor:
        """Puts `x [B,T,...]` at the next positions; returns all of this layer's `name` so far, `[B,S,...]`."""
        B, T = x.shape[:2]
        key = (layer, name)
        if key not in self._buffers:
            self._buffers[key] = x.new_zeros(B, self.capacity, *x.shape[2:])
        buffer = self._buffers[key]
        buffer[torch.arange(B, device=x.device)[:, None], self.positions(T)] = x
        return buffer[:, : self.longest + T]

    def advance(self, tokens: int) -> None:
        """Counts `tokens` more tokens in every row; the model calls it once, after its last layer."""
        self.lengths += tokens
        self.longest += tokens

    def truncate(self, lengths: Tensor) -> None:
        """Forgets each row's tokens from position `lengths[row]` on."""
        self.lengths = torch.minimum(self.lengths, lengths.to(self.lengths))
        self.longest = int(self.lengths.max())
