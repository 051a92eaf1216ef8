"""Drawing a token: penalties, bias, mask, temperature, truncation, and a random number of the token's own.

Each row is worked on alone, in an order that does not depend on other rows, so that a text does not either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from inazuma.serve.request import Mask, Request, Sampling, Token

CANDIDATES = 512
"""How many of the likeliest tokens are sorted at first; where they do not hold enough probability, all are."""


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) that depends on the seed and the place of the new token alone (Philox, a counter's hash)."""
    bits = np.random.Philox(key=seed & (2**128 - 1), counter=place).random_raw()
    return (bits >> 11) * 2.0**-53


class Sampler:
    """Draws the tokens of one request, one after another."""

    def __init__(self, request: Request, vocabulary: int):
        self._sampling = request.sampling
        self._mask: Mask | None = request.mask
        self._logprobs = request.logprobs
        self._written: Counter[int] = Counter()
        self._seen = set(request.prompt) if request.sampling.repetition_penalty != 1 else set()
        self._bitmask = torch.empty((vocabulary + 31) // 32, dtype=torch.int32)
        bias = request.sampling.logit_bias
        self._bias = (torch.tensor(list(bias), dtype=torch.long), torch.tensor(list(bias.values()))) if bias else None
        sampling = request.sampling
        self._plain = not bias and self._mask is None and (sampling.repetition_penalty == 1)
        self._plain &= sampling.presence_penalty == 0 and sampling.frequency_penalty == 0

    def draw(self, logits_V: Tensor, place: int) -> Token:
        """The new token number `place` (the first is 0) from the model's logits, float32; they are not changed."""
        adjusted = logits_V if self._plain else self._adjust(logits_V)
        token = self._choose(adjusted, place)
        if self._logprobs is None:
            return Token(token)
        return with_logprobs(logits_V, token, self._logprobs)

    def accept(self, token: int) -> None:
        """Counts a token that became text."""
        self._written[token] += 1
        if self._sampling.repetition_penalty != 1:
            self._seen.add(token)
        if self._mask is not None:
            self._mask.accept(token)

    def _adjust(self, logits_V: Tensor) -> Tensor:
        sampling = self._sampling
        x = logits_V.clone()
        if self._seen:
            at = torch.tensor(sorted(self._seen))
            seen = x[at]
            x[at] = torch.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
        if self._written and (sampling.presence_penalty or sampling.frequency_penalty):
            at = torch.tensor(list(self._written))
            times = torch.tensor(list(self._written.values()), dtype=x.dtype)
            x[at] -= sampling.presence_penalty + sampling.frequency_penalty * times
        if self._bias is not None:
            at, bias = self._bias
            x[at] += bias.to(x)
        if self._mask is not None:
            self._mask.fill(self._bitmask)
            x[~unpack(self._bitmask, len(x))] = -torch.inf
        return x

    def _choose(self, x: Tensor, place: int) -> int:
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(x.argmax())
        probabilities = (x.double() / sampling.temperature).softmax(-1)
        u = uniform(sampling.seed, place)
        if sampling.top_k == 0 and sampling.top_p >= 1 and sampling.min_p == 0:
            return _invert(probabilities, u)
        first = min(max(CANDIDATES, sampling.top_k), len(x))
        # Of equal probabilities the lower token comes first, however many were sorted.
        values, tokens = probabilities.topk(first)
        if first < len(x) and not _enough(values, sampling):
            values, tokens = probabilities.sort(descending=True, stable=True)
        else:
            order = np.lexsort((tokens.numpy(), -values.numpy()))
            values, tokens = values[order], tokens[order]
        return int(tokens[_invert(_truncate(values, sampling), u)])


def _enough(values: Tensor, sampling: Sampling) -> bool:
    """Whether the likeliest tokens `values` hold all that can be drawn; ties at their end must not be cut."""
    if sampling.top_k and sampling.top_k < len(values):
        return bool(values[sampling.top_k - 1] > values[-1])
    if sampling.min_p and values[-1] < sampling.min_p * values[0]:
        return True
    return sampling.top_p < 1 and bool(values.sum() - values[-1] > sampling.top_p) and bool(values[-2] > values[-1])


def _truncate(values: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities, the highest first, with zeros where nothing may be drawn."""
    kept = values.clone()
    if sampling.top_k:
        kept[sampling.top_k :] = 0
    if sampling.min_p:
        kept[values < sampling.min_p * values[0]] = 0
    if sampling.top_p < 1:
        before = kept.cumsum(-1) - kept
        kept[before >= sampling.top_p * (kept.sum() if sampling.top_k or sampling.min_p else 1.0)] = 0
    return kept


def _invert(probabilities: Tensor, u: float) -> int:
    """The first place where the cumulated probability exceeds the share `u` of its total."""
    cumulative = probabilities.cumsum(-1)
    place = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
    if place == len(cumulative):  # u was rounded up to the total
        place = int(probabilities.nonzero()[-1])
    return place


def unpack(bitmask: Tensor, vocabulary: int) -> Tensor:
    """bool `[vocabulary]` of a mask's int32 words."""
    bits = np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")[:vocabulary]
    return torch.from_numpy(bits.astype(bool))


def with_logprobs(logits_V: Tensor, token: int, top: int) -> Token:
    """A token with its log-probability and those of the `top` likeliest ones."""
    logprobs = logits_V.float().log_softmax(-1)
    if not top:
        return Token(token, float(logprobs[token]))
    values, tokens = logprobs.topk(min(top, len(logprobs)))
    return Token(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))


def prompt_logprobs(logits_NV: Tensor, tokens: Iterable[int], top: int) -> list[Token]:
    """Each of `tokens` with its log-probability under the row of logits before it."""
    return [with_logprobs(row, token, top) for row, token in zip(logits_NV, tokens, strict=True)]
