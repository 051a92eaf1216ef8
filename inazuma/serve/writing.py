"""From the engine's tokens to what a client reads: the text, cut at stop strings, with the log-probabilities of the
tokens that carry it; and a chat's answer taken apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

from inazuma.serve.detokenize import Detokenizer, StopStrings, Vocabulary
from inazuma.serve.request import Token
from inazuma.serve.running import Run
from inazuma.serve.stream_parser import Delta, Parser, ToolStart


class Placed(NamedTuple):
    """A token, and where in the text it begins (in characters)."""

    token: Token
    offset: int


class Text:
    """One text as it comes. What is shown and which tokens go with it depend on the tokens alone, not on how they
    arrive: a token is given out once a character of it is shown.

    Args:
        stops: strings that end the text and are not part of it.
        stop_ids: tokens that end it; never shown.
        keep_end: whether the one that did is given out among the tokens.
        keep: markers that are shown although special tokens are left out; see `Detokenizer`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stops: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        keep_end: bool = False,
        keep: Iterable[str] = (),
        offset: int = 0,
    ):
        self._detokenizer = Detokenizer(vocabulary, keep=keep)
        self._stops = StopStrings(stops)
        self._stop_ids, self._keep_end = stop_ids, keep_end
        self._certain = self._shown = offset
        self._pending: list[Placed] = []
        self.stopped = False
        """Whether a stop string ended it."""

    def push(self, tokens: Iterable[Token]) -> tuple[str, list[Placed]]:
        """What may be shown with these tokens, and which tokens that completes."""
        text = ""
        for token in tokens:
            if self.stopped:
                break
            end = token.id in self._stop_ids
            if not end or self._keep_end:
                self._pending.append(Placed(token, self._certain))
            piece = "" if end else self._detokenizer.push(token.id)
            text += self._show(piece)
        return text, self._carried()

    def finish(self) -> tuple[str, list[Placed]]:
        """The rest, at the end."""
        text = ""
        if not self.stopped:
            text = self._show(self._detokenizer.flush())
        if not self.stopped:
            rest = self._stops.flush()
            self._shown += len(rest)
            text += rest
            carried, self._pending = self._pending, []
            return text, carried
        return text, self._carried()

    def _show(self, piece: str) -> str:
        self._certain += len(piece)
        shown, self.stopped = self._stops.push(piece)
        self._shown += len(shown)
        return shown

    def _carried(self) -> list[Placed]:
        count = next((i for i, placed in enumerate(self._pending) if placed.offset >= self._shown), len(self._pending))
        carried, self._pending = self._pending[:count], self._pending[count:]
        return carried


async def write(run: Run, text: Text) -> AsyncIterator[tuple[str, list[Placed]]]:
    """The text of a run in the pieces that it comes in; a stop string ends the run too."""
    async for tokens in run:
        pushed = text.push(tokens)
        if text.stopped:
            run.stop()
        yield pushed
    yield text.finish()


class Said(NamedTuple):
    """A piece of a chat's answer."""

    deltas: list[Delta]
    tokens: list[Placed]


async def speak(run: Run, text: Text, parser: Parser, *, parallel_calls: bool = True) -> AsyncIterator[Said]:
    """The answer of a run, taken apart; without `parallel_calls` it ends before a second tool call."""
    calls = 0

    def until_second_call(deltas: list[Delta]) -> list[Delta]:
        nonlocal calls
        kept = []
        for delta in deltas:
            calls += isinstance(delta, ToolStart)
            if calls > 1 and not parallel_calls:
                run.stop()
                break
            kept.append(delta)
        return kept

    async for piece, tokens in write(run, text):
        yield Said(until_second_call(parser.push(piece)), tokens)
    if calls < 2 or parallel_calls:
        truncated = run.reason == "length" or text.stopped
        yield Said(until_second_call(parser.finish(truncated)), [])


def chat_logprobs(vocabulary: Vocabulary, tokens: Iterable[Placed]) -> list[dict[str, Any]]:
    """OpenAI's `logprobs.content`."""

    def entry(id: int, logprob: float | None) -> dict[str, Any]:
        piece = vocabulary.token_bytes(id)
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}

    return [
        entry(token.id, token.logprob) | {"top_logprobs": [entry(id, logprob) for id, logprob in token.top]}
        for token, _ in tokens
    ]


def legacy_logprobs(vocabulary: Vocabulary, tokens: Sequence[Placed]) -> dict[str, Any]:
    """The `logprobs` of `/v1/completions`. A token that is no whole character is named by its bytes, as OpenAI did."""

    def name(id: int) -> str:
        piece = vocabulary.token_bytes(id)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def top(token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        named: dict[str, float] = {}
        # Of two tokens that are spelled alike the likelier one counts.
        for id, logprob in (*token.top, (token.id, token.logprob)):
            named.setdefault(name(id), logprob)
        return named

    return {
        "tokens": [name(token.id) for token, _ in tokens],
        "token_logprobs": [token.logprob for token, _ in tokens],
        "top_logprobs": [top(token) for token, _ in tokens],
        "text_offset": [offset for _, offset in tokens],
    }
