"""What a task needs of a model, be it a checkpoint on this machine or a server elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Reply:
    """What came back for one prompt. With an `error` nothing came back; with `refused` the model would not answer."""

    text: str | None = None
    stop_reason: str | None = None
    """"stop", "length", or what a server said."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    dropped: int | None = None
    """Prompt tokens that were taken away; None where nobody tells."""
    refused: bool = False
    error: str | None = None


class Answering(Protocol):
    """A model that answers prompts."""

    at_once: int
    """How many prompts it takes at a time."""
    batch_size: int | None
    """How many prompts share a computation; None where nobody tells."""
    positions: int | None
    """Tokens of a prompt and its answer together; None where nobody tells."""

    def facts(self) -> dict[str, Any]:
        """What the model is, for the run's manifest: enough to know whether another run asked the same one."""
        ...

    def count(self, text: str) -> int | None:
        """Tokens of a text; None where the tokenizer is not known."""
        ...

    def answer(self, prompt: str, *, max_tokens: int, stop: str | None, seed: int) -> Reply:
        """The likeliest continuation of a prompt, up to `stop` or so many tokens. Called from `at_once` threads."""
        ...
