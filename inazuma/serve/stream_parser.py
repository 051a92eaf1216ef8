"""A model's answer taken apart as it comes: reasoning, content and tool calls.

Each format of calls is one small coroutine over the text (`tool_formats`). However the text is cut into pieces, the
deltas put together are the same; a piece that may still become a marker is held back, and no more.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from inazuma.serve.arguments import escape, readable, resolve, typed, types_of
from inazuma.serve.detokenize import overlap

THINK, END_THINK = "<think>", "</think>"


class Content(NamedTuple):
    text: str


class Reasoning(NamedTuple):
    text: str


class ToolStart(NamedTuple):
    index: int
    id: str
    name: str


class ToolArguments(NamedTuple):
    index: int
    fragment: str
    """A piece of the arguments' JSON text."""


Delta = Content | Reasoning | ToolStart | ToolArguments

_JSON_BEGINS = frozenset('{["-0123456789tfn')

Steps = Generator[None, None, Any]
"""A coroutine that yields when it needs more text."""


def make_parser(format: str | None, *, tools: Sequence[Mapping] | None = None, thinking: bool = False) -> Parser:
    """The parser of one answer.

    A function that was not offered is a call like any other: the client answers it with an error, from which the model
    recovers; as content it would be lost.

    Args:
        format: What `ChatTemplate.detect` says. None: everything is content (after reasoning, if `thinking`).
        tools: The tools that were offered, as in OpenAI's `tools`; without any, calls are not looked for and their
            markers are text.
        thinking: Whether the prompt ends within reasoning (`opens_thinking`): the template wrote `<think>`. Reasoning
            that the model opens itself, at its beginning, is found without.

    Raises:
        UserError: There is no such format.
    """
    from inazuma.serve.tool_formats import parser_of

    return parser_of(format)(format, tools or (), thinking)


def markers(format: str | None) -> tuple[str, ...]:
    """What a parser needs to see in the text: reasoning's tags and those of the format's calls."""
    from inazuma.serve.tool_formats import parser_of

    tags = [value for value in vars(parser_of(format)).values() if isinstance(value, str | tuple)]
    flat = [text for tag in tags for text in ((tag,) if isinstance(tag, str) else tag)]
    return (THINK, END_THINK, *(text for text in flat if text.startswith("<")))


class Parser:
    """Reasoning and content, and the tools to read text with; formats with calls say how those begin and go on."""

    OPEN: tuple[str, ...] = ()
    """Markers that begin calls."""

    def __init__(self, format: str | None, tools: Sequence[Mapping], thinking: bool):
        self._format = format
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self._thinking = thinking
        self._markers = self.OPEN if self._schemas else ()
        self._buffer = ""
        self._ended = self._truncated = False
        self._out: list[Delta] = []
        self._calls = 0
        self._inside = False
        """Whether calls are being read."""
        self._space = ""
        """White space at the end of what was written so far: left out where a marker follows."""
        self._fresh = False
        """Whether white space that comes next is left out: after reasoning and calls."""
        self._steps = self._run()
        next(self._steps)

    def push(self, text: str) -> list[Delta]:
        """The deltas that are certain with this text."""
        self._buffer += text
        return self._advance()

    def finish(self, truncated: bool) -> list[Delta]:
        """The rest, at the end of the text.

        Args:
            truncated: Whether the text was cut off (`max_tokens`, a stop string, a cancelled request). A call that was
                not complete then stays so: its fragments are the beginning of a JSON text, as OpenAI's are. Where the
                model ended by itself, the tags that it forgot are taken as written.
        """
        self._ended, self._truncated = True, truncated
        return self._advance()

    def _advance(self) -> list[Delta]:
        next(self._steps, None)
        out = self._out[:]
        self._out.clear()
        return out

    # -- the outline -------------------------------------------------------------------------------------------------

    def _run(self) -> Steps:
        yield
        if self._format is not None or self._thinking:
            yield from self._reasoning()
        while (marker := (yield from self._until(self._markers, self._content))) is not None:
            self._space = ""
            before, self._inside = self._calls, True
            yield from self._read_calls(marker)
            self._inside = False
            self._fresh = self._fresh or self._calls > before
        if self._space:
            self._out.append(Content(self._space))

    def _reasoning(self) -> Steps:
        # A lone </think> ends reasoning that the template wrote whole.
        opened = yield from self._starts_with(THINK, *(() if self._thinking else (END_THINK,)))
        if opened == THINK or self._thinking:
            self._fresh = True
            # Models forget to close it before a call.
            end = yield from self._until((END_THINK, *self._markers), lambda text: self._write(text, Reasoning))
            if end in self._markers:
                self._buffer = end + self._buffer
            self._space = ""
        # GLM's templates end before the newline that comes first.
        self._fresh = opened is not None or self._thinking or (self._format or "").startswith("glm")

    def _content(self, text: str) -> None:
        if self._format is None and not self._thinking:
            self._out.extend([Content(text)] if text else [])
        else:
            self._write(text, Content)

    def _write(self, text: str, kind: type[Content] | type[Reasoning]) -> None:
        text = text.lstrip() if self._fresh else text
        if not text:
            return
        self._fresh = False
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._out.append(kind(shown))

    # -- reading -----------------------------------------------------------------------------------------------------

    def _until(self, markers: tuple[str, ...], sink: Callable[[str], None]) -> Steps:
        """Gives the text before the next of `markers` to `sink`, as it comes; returns the marker, None at the end."""
        while True:
            found = [(start, marker) for marker in markers if (start := self._buffer.find(marker)) >= 0]
            if found:
                start, marker = min(found)
                before, self._buffer = self._buffer[:start], self._buffer[start + len(marker) :]
                sink(before)
                return marker
            # The beginning of a marker stays; where the text was cut off within one, it is dropped. A lone "<" outside
            # of calls is more likely text.
            partial = overlap(self._buffer, markers)
            if self._ended and not self._cut and not (self._truncated and partial > 1):
                partial = 0
            certain = len(self._buffer) - partial
            before, self._buffer = self._buffer[:certain], "" if self._ended else self._buffer[certain:]
            sink(before)
            if self._ended:
                return None
            yield

    def _text_until(self, *markers: str) -> Steps:
        """(text before the next of `markers`, the marker or None at the end)"""
        pieces: list[str] = []
        marker = yield from self._until(markers, pieces.append)
        return "".join(pieces), marker

    def _starts_with(self, *options: str) -> Steps:
        """Takes one of `options` if the text, white space aside, goes on with it; else takes nothing, returns None."""
        while True:
            text = self._buffer.lstrip()
            for option in options:
                if text.startswith(option):
                    self._buffer = text[len(option) :]
                    return option
            partial = any(option.startswith(text) for option in options)
            if self._ended or not partial:
                if partial and self._cut:
                    self._buffer = ""
                return None
            yield

    @property
    def _cut(self) -> bool:
        """Whether the text was cut off within calls."""
        return self._ended and self._truncated and self._inside

    def _json_value(self, sink: Callable[[str], None]) -> Steps:
        """Gives the text of one JSON value, if there is any, white space before it aside, to `sink` as it comes.

        It ends with its last bracket, whatever stands in its strings. Returns what closes the quote and the brackets
        that are open where no JSON goes on (at a `<` outside of strings, at the end of a text that was not cut off).
        """
        while not self._buffer.strip() and not self._ended:
            yield
        self._buffer = self._buffer.lstrip()
        if self._buffer[:1] not in _JSON_BEGINS:
            return ""
        brackets: list[str] = []
        quoted = escaped = False
        while True:
            for i, character in enumerate(self._buffer):
                length = 0
                if quoted:
                    quoted = escaped or character != '"'
                    escaped = character == "\\" and not escaped
                    length = 0 if quoted or brackets else i + 1
                elif character == "<" or (not brackets and character in ",:]} \n\r\t"):
                    before, self._buffer = self._buffer[:i], self._buffer[i:]
                    sink(before)
                    return "".join(reversed(brackets))
                elif character in "{[":
                    brackets.append("}" if character == "{" else "]")
                elif character in "}]":
                    brackets.pop()
                    length = 0 if brackets else i + 1
                elif character == '"':
                    quoted = True
                if length:
                    before, self._buffer = self._buffer[:length], self._buffer[length:]
                    sink(before)
                    return ""
            before, self._buffer = self._buffer, ""
            sink(before)
            if self._ended:
                return "" if self._truncated else '"' * quoted + "".join(reversed(brackets))
            yield

    def _whole_json(self, sink: Callable[[str], None]) -> Steps:
        """Gives the text of one JSON value to `sink` as it comes, and what closes it."""
        sink((yield from self._json_value(sink)))

    # -- calls -------------------------------------------------------------------------------------------------------

    def _read_calls(self, marker: str) -> Steps:
        """Reads what follows a marker of `OPEN`, to the end of the calls."""
        raise NotImplementedError

    def _start(self, name: str) -> Call:
        call = Call(self._calls, self._schemas.get(name, {}), self._out)
        self._out.append(ToolStart(self._calls, "call_" + secrets.token_hex(12), name))
        self._calls += 1
        return call

    def _unread(self, marker: str | None) -> None:
        self._buffer = (marker or "") + self._buffer

    def _cut_here(self, marker: str | None) -> bool:
        """Whether the text was cut off where a marker was looked for and not found."""
        return marker is None and self._cut and not self._buffer.strip()

    def _read_value(
        self, call: Call, key: str, types: frozenset[str] | None, ends: tuple[str, ...], after: tuple[str, ...]
    ) -> Steps:
        """Reads a parameter's value, given as text, to the marker that it returns. Strings are written as they come,
        anything else when it is whole.

        Args:
            ends: What ends a value: its closing tag, and what comes where that was forgotten.
            after: What may follow the closing tag; where anything else does, the tag is a piece of text.
        """
        call.key(key)
        if types == {"string"}:
            call.write('"')
            marker = yield from self._until_tag(ends, after, lambda text: call.write(escape(text)))
            call.write("" if self._cut_here(marker) else '"')
            return marker
        text = ""
        if types is not None and "string" not in types:
            text = yield from self._json_before(ends)
        pieces: list[str] = []
        marker = yield from self._until_tag(ends, after, pieces.append)
        text += "".join(pieces)
        if not self._cut_here(marker):
            call.write(typed(text, types))
        elif types is not None and "string" not in types:
            call.write(text.strip())
        # Else it was not yet known whether it is text.
        return marker

    def _json_before(self, ends: tuple[str, ...]) -> Steps:
        """The text of one JSON value, in whose strings markers end nothing. None is taken where such a text has a
        marker and cannot be read: a quote that was not closed runs on into what follows, to the end of the answer."""
        pieces: list[str] = []
        closing = yield from self._json_value(pieces.append)
        text = "".join(pieces)
        if self._cut or readable(text) or not any(end in text for end in ends):
            return text + closing
        self._unread(text)
        return ""

    def _until_tag(self, ends: tuple[str, ...], after: tuple[str, ...], sink: Callable[[str], None]) -> Steps:
        """Like `_until`, but where none of `after` nor the end of the text follows the first of `ends`, that is text,
        as in the source of a program that writes such tags."""
        while (marker := (yield from self._until(ends, sink))) == ends[0]:
            follows = yield from self._starts_with(*after)
            self._unread(follows)
            if follows is not None or (self._ended and not self._buffer.strip()):
                break
            sink(marker)
        return marker


class Call:
    """Writes one call's arguments."""

    def __init__(self, index: int, schema: Mapping, out: list[Delta]):
        self._index, self._schema, self._out = index, schema, out
        self._written = self._parameters = 0

    def types(self, key: str) -> frozenset[str] | None:
        """What the tool's schema says of a parameter."""
        properties = (resolve(self._schema, self._schema) or {}).get("properties") or {}
        return types_of(properties.get(key, True), self._schema)

    def write(self, fragment: str) -> None:
        if fragment:
            self._written += 1
            self._out.append(ToolArguments(self._index, fragment))

    def key(self, key: str) -> None:
        self.write((", " if self._parameters else "{") + json.dumps(key, ensure_ascii=False) + ": ")
        self._parameters += 1

    def close(self) -> None:
        """After the last parameter."""
        self.write("}" if self._parameters else "{}")

    def close_if_empty(self) -> None:
        """Where the model wrote no arguments at all."""
        if not self._written:
            self.write("{}")
