"""From token ids to text as they come: whole characters only, and stop strings found wherever the pieces break."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from inazuma.errors import UserError


def _byte_alphabet() -> dict[str, int]:
    """The 256 characters that byte-level BPE writes bytes with: printable Latin-1 stands for itself, the rest follows
    from U+0100 on, in order (GPT-2's `bytes_to_unicode`)."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    alphabet = {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}
    assert set(alphabet) == set(ByteLevel.alphabet())
    return alphabet


_BYTES = _byte_alphabet()
_BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""SentencePiece's byte fallback."""


class Vocabulary:
    """What each token of a tokenizer stands for, in bytes; made once and shared by all texts.

    Attributes:
        byte_level: Whether the tokenizer decodes byte-level BPE and nothing else.
        special: The special tokens: id -> name.
    """

    def __init__(self, tokenizer: Tokenizer):
        description = json.loads(tokenizer.to_str())
        self.tokenizer = tokenizer
        parts = _decoders(description.get("decoder"))
        self.byte_level = parts == ["ByteLevel"]
        self.special = {token["id"]: token["content"] for token in description["added_tokens"] if token["special"]}
        fallback = _BYTE_TOKENS if "ByteFallback" in parts else {}
        self.fallback = {
            id: byte for token, byte in fallback.items() if (id := tokenizer.token_to_id(token)) is not None
        }
        """Tokens that are one byte each, of a tokenizer with byte fallback: id -> byte."""
        self._pieces: dict[int, bytes] = {}

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text; none for an id that the tokenizer does not have. A special token's are
        its name's."""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._piece(id)
        return piece

    def token_text(self, id: int) -> str:
        """A token by itself as text; bytes that are no whole character become U+FFFD."""
        return self.token_bytes(id).decode("utf-8", errors="replace")

    def _piece(self, id: int) -> bytes:
        token = self.tokenizer.id_to_token(id)
        if token is None:
            return b""
        if self.byte_level:
            if all(character in _BYTES for character in token):
                return bytes(_BYTES[character] for character in token)
            return token.encode()  # an added token: its name
        if id in self.fallback:
            return bytes([self.fallback[id]])
        return token.replace("▁", " ").encode()


def _decoders(decoder: dict | None) -> list[str]:
    """The types of a tokenizer's decoders, in order."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [name for part in decoder["decoders"] for name in _decoders(part)]
    return [decoder["type"]]


class Detokenizer:
    """One text's ids turned into characters as they come.

    What `push` and `flush` return, put together, is `tokenizer.decode(ids, skip_special_tokens)`, and no piece ends
    within a character. A `push` costs the same however long the text is. This holds for byte-level BPE, for
    SentencePiece-like tokenizers with and without byte fallback (a run of byte tokens is held until it ends: only then
    is it known whether it is text), and for decoders that look no further back than one token.

    Args:
        tokenizer: Or a `Vocabulary` of it: servers share one.
        skip_special_tokens: Whether special tokens are left out of the text.
        keep: Markers that stay in the text although special tokens are left out, for those that stand in one of them
            (`stream_parser.markers`): some tokenizers have `<tool_call>` as a special token, others do not.
    """

    def __init__(
        self, tokenizer: Tokenizer | Vocabulary, *, skip_special_tokens: bool = True, keep: Iterable[str] = ()
    ):
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary(tokenizer)
        special, keep = self.vocabulary.special, tuple(keep)
        self._skip = {id for id, name in special.items() if skip_special_tokens and not any(name in m for m in keep)}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # Of the other tokenizers: the last token that was written, which tells the decoder that the text has begun,
        # and those that are held.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, id: int) -> str:
        """The text that is certain with this token; may be empty."""
        if id in self._skip or self.vocabulary.tokenizer.id_to_token(id) is None:
            return ""
        if self.vocabulary.byte_level:
            return self._utf8.decode(self.vocabulary.token_bytes(id))
        self._held.append(id)
        return "" if id in self.vocabulary.fallback else self._write()

    def flush(self) -> str:
        """The rest at the end of the text: what was begun and never completed comes as U+FFFD."""
        if self.vocabulary.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._write()

    def _write(self) -> str:
        if not self._held:
            return ""
        before = self._decode(self._context)
        text = self._decode(self._context + self._held)
        self._context, self._held = self._held[-1:], []
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.vocabulary.tokenizer.decode(ids, skip_special_tokens=False)


def overlap(text: str, needles: Iterable[str]) -> int:
    """Length of the longest end of `text` that one of `needles` begins with and goes on from."""
    longest = 0
    for needle in needles:
        for length in range(min(len(needle) - 1, len(text)), longest, -1):
            if text.endswith(needle[:length]):
                longest = length
                break
    return longest


class StopStrings:
    """Ends a text before the first of several strings, however the text is cut into pieces.

    The stop string that is complete first counts (of two that end together, the longer). No more is held back than the
    longest end of the text that a stop string begins with.

    Attributes:
        matched: The stop string that was found.

    Raises:
        UserError: A stop string is empty.
    """

    def __init__(self, stops: Sequence[str]):
        if not all(stops):
            raise UserError("stop: an empty string stops nothing; leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string was found: nothing more comes then)."""
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start], True
        shown = len(text) - overlap(text, self._stops)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        text, self._held = self._held, ""
        return text
