"""What is asked of the engine and what it answers, in token ids: the line between the model's side and the API's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, in this order: penalties and bias, mask, temperature, top_k, min_p, top_p.

    The draw of the i-th new token is a function of the seed and i alone: the same seed gives the same text, whatever
    else is computed with it.
    """

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int = 0
    """Draw from the k likeliest; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that hold this much probability (arXiv 1904.09751)."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability (arXiv 2407.01082)."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token already written, once."""
    frequency_penalty: float = 0.0
    """Taken off as often as it was written."""
    repetition_penalty: float = 1.0
    """Positive logits of tokens in the prompt or the text are divided by it, negative ones multiplied."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to logits; -100 bans a token, 100 all but forces it."""
    seed: int = 0


class Mask(Protocol):
    """The tokens that a grammar allows next; stateful, one for each request, used by the engine's thread alone."""

    def fill(self, bitmask: Tensor) -> None:
        """Writes into `bitmask`, int32 `[ceil(vocab_size / 32)]`: bit i % 32 of word i // 32 says whether token i may
        come next. The model's end-of-text tokens are allowed where the grammar may end."""

    def accept(self, token: int) -> bool:
        """Takes a token in; False where the grammar does not allow it."""

    def fork(self) -> Mask:
        """An independent copy in the same state, to look ahead with guessed tokens."""


@dataclass
class Request:
    prompt: list[int]
    max_tokens: int
    """New tokens at most; 0 only reads the prompt."""
    sampling: Sampling = Sampling()
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the text; the one that did is the last token of the answer."""
    logprobs: int | None = None
    """None: no log-probabilities. Else the log-probability of each token that is drawn and of so many likeliest ones.
    They are the model's own, before penalties, bias, mask and temperature."""
    prompt_logprobs: int | None = None
    """The same, of the prompt's tokens (the first has none)."""
    prompt_logprobs_start: int = 0
    """The first token of the prompt whose log-probability is wanted; what comes before may be taken from the cache."""
    mask: Mask | None = None
    hidden: bool = False
    """Whether the answer has the mean of the last layer's normed output over the prompt, for embeddings."""
    selection: bool = False
    """Whether the answer has what each layer's indexer selected for the prompt's last token."""


class Token(NamedTuple):
    id: int
    logprob: float | None = None
    """Natural logarithm."""
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability) of the likeliest tokens, the likeliest first."""


@dataclass(frozen=True)
class Done:
    """The last event of a request."""

    reason: Literal["stop", "length", "cancelled", "failed"]
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt: taken from the cache, not read anew."""
    new_tokens: int
    drafted: int = 0
    accepted: int = 0
    """Guesses by multi-token prediction, and how many of them were right."""
    prompt: tuple[Token, ...] = ()
    """The prompt's tokens from `prompt_logprobs_start` on with their log-probabilities, if they were asked for."""
    hidden: Tensor | None = None
    """float32 `[hidden_size]`."""
    selection: tuple[tuple[int, ...] | None, ...] = ()
    """A layer each: the positions that the prompt's last token reads, ascending; None: all of them, the layer is
    dense."""
    error: str = ""
    first_token_s: float | None = None
    """Seconds from `submit` to the first token."""
    total_s: float = 0.0


class Busy(Exception):
    """There is no room now; the API answers 429."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class TooLong(ValueError):
    """The request can never run: more tokens than the model or the cache holds; the API answers 400."""


class Stream(Protocol):
    """The events of one request, in order: lists of tokens, then `Done`."""

    def __aiter__(self) -> Stream: ...

    async def __anext__(self) -> list[Token] | Done: ...

    def cancel(self) -> None:
        """Ends the request within one step; from any thread."""


class Engine(Protocol):
    """What the API needs; `inazuma.serve.engine.Engine` is it."""

    context: int
    """Tokens of prompt and answer together, at most."""

    def submit(self, request: Request) -> Stream:
        """From a running event loop, which the events come back to.

        Raises:
            Busy, TooLong.
        """

    def metrics(self) -> dict[str, float]:
        """Gauges and counters by name: requests_running, requests_waiting, cache_tokens_used, cache_tokens_total,
        prompt_tokens, cached_prompt_tokens, new_tokens, drafted_tokens, accepted_tokens, steps,
        requests_{stop,length,cancelled,failed}."""

    def close(self, grace: float) -> None:
        """Takes no new requests, lets those that run go on for `grace` seconds, cancels the rest."""
