"""A model's answer taken apart as it comes: reasoning, content and tool calls.

Each format is one small coroutine over the text. However the text is cut into pieces, the deltas put together are the
same; a piece that may still become a marker is held back, no more. Formats (`ChatTemplate.detect` names a model's):

| format | a call |
|---|---|
| `glm45`, `glm47` | `<tool_call>name <arg_key>k</arg_key> <arg_value>v</arg_value> … </tool_call>` (4.7 without newlines) |
| `deepseek_v32` | `<｜DSML｜invoke name="…">` with `<｜DSML｜parameter name="…" string="true|false">` |
| `deepseek_v3`, `deepseek_v31` | `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>` (V3: type, name, ```` ```json ````) |
| `hermes` | `<tool_call>{"name": …, "arguments": …}</tool_call>` (Qwen, SmolLM) |

A function that was not offered is a call like any other: the client's loop answers it with an error, from which the
model recovers; as content it would be lost on the client. Markers are looked for only where tools were offered.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from inazuma.errors import UserError
from inazuma.serve.detokenize import overlap


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

_Steps = Generator[None, None, Any]
"""A coroutine that yields when it needs more text."""

THINK, END_THINK = "<think>", "</think>"


def make_parser(format: str | None, *, tools: Sequence[Mapping] | None = None, thinking: bool = False) -> Parser:
    """The parser of one answer.

    Args:
        format: What `ChatTemplate.detect` says; None passes everything on as content (after reasoning, if any).
        tools: The tools that were offered, as in OpenAI's `tools`; without any, no calls are looked for.
        thinking: Whether the prompt ends within the reasoning (`opens_thinking`): the template wrote `<think>`.

    Raises:
        UserError: There is no such format.
    """
    if format is not None and format not in _FORMATS:
        raise UserError(f"tool format {format!r} is unknown; there are {', '.join(sorted(_FORMATS))}")
    return (_FORMATS[format] if format else Parser)(format, tools or (), thinking)


class Parser:
    """Reasoning and content; the formats with calls build on it."""

    OPEN: tuple[str, ...] = ()
    """Markers that begin calls."""

    def __init__(self, format: str | None, tools: Sequence[Mapping], thinking: bool):
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self._format = format
        self._thinking = thinking
        self._buffer = ""
        self._ended = False
        self._truncated = False
        self._out: list[Delta] = []
        self._calls = 0
        self._space = ""
        """White space at the end of the content: dropped where a call follows."""
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
            truncated: Whether the text was cut off (`max_tokens`, a stop string, cancelled). A call that was not
                complete is then left as it is: its fragments are the beginning of a JSON text, as with OpenAI. If the
                model ended by itself, the tags that it forgot are taken as written.
        """
        self._ended, self._truncated = True, truncated
        return self._advance()

    def _advance(self) -> list[Delta]:
        next(self._steps, None)
        out, self._out = self._out, []
        return out

    # -- the text's outline ------------------------------------------------------------------------------------------

    def _run(self) -> _Steps:
        yield
        if self._format is not None or self._thinking:
            yield from self._reasoning()
        while (marker := (yield from self._until(self.OPEN if self._schemas else (), self._content))) is not None:
            self._space = ""
            yield from self._read_calls(marker)
            self._fresh = True
        if self._space:
            self._out.append(Content(self._space))

    def _reasoning(self) -> _Steps:
        opened = yield from self._starts_with(THINK, *(() if self._thinking else (END_THINK,)))
        if opened == THINK or self._thinking:
            self._fresh = True
            # A call within the reasoning ends it: models forget to close it.
            ends = (END_THINK, *(self.OPEN if self._schemas else ()))
            end = yield from self._until(ends, self._reason)
            self._space = ""
            if end not in (END_THINK, None):
                self._buffer = end + self._buffer
        self._fresh = opened is not None or self._thinking or (self._format or "").startswith("glm")

    def _reason(self, text: str) -> None:
        self._write(text, Reasoning)

    def _content(self, text: str) -> None:
        if self._format is None and not self._thinking:
            self._out.extend([Content(text)] if text else [])
        else:
            self._write(text, Content)

    def _write(self, text: str, kind: type[Content] | type[Reasoning]) -> None:
        """Holds white space at the end back."""
        if self._fresh:
            text = text.lstrip()
        if not text:
            return
        self._fresh = False
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._out.append(kind(shown))

    # -- reading -----------------------------------------------------------------------------------------------------

    def _until(self, markers: tuple[str, ...], sink: Callable[[str], None]) -> _Steps:
        """Gives the text before the next of `markers` to `sink`, as it comes; returns the marker, None at the end."""
        while True:
            found = [(start, marker) for marker in markers if (start := self._buffer.find(marker)) >= 0]
            if found:
                start, marker = min(found)
                sink(self._buffer[:start])
                self._buffer = self._buffer[start + len(marker) :]
                return marker
            certain = len(self._buffer) - (0 if self._ended else overlap(self._buffer, markers))
            sink(self._buffer[:certain])
            self._buffer = self._buffer[certain:]
            if self._ended:
                return None
            yield

    def _text_until(self, *markers: str) -> _Steps:
        """(text before the next of `markers`, the marker or None at the end)"""
        pieces: list[str] = []
        marker = yield from self._until(markers, pieces.append)
        return "".join(pieces), marker

    def _starts_with(self, *options: str) -> _Steps:
        """Takes one of `options` if the text, white space aside, goes on with it; else takes nothing, returns None."""
        while True:
            text = self._buffer.lstrip()
            for option in options:
                if text.startswith(option):
                    self._buffer = text[len(option) :]
                    return option
            if self._ended or not any(option.startswith(text) for option in options):
                return None
            yield

    def _json_value(self, sink: Callable[[str], None]) -> _Steps:
        """Gives the text of one JSON value to `sink`, as it comes; returns whether there was a whole one.

        A value ends with its last bracket, wherever markers stand in its strings; at a `<` outside of strings, where no
        JSON goes on, and at the end of a text that was not cut off, open brackets are closed.
        """
        yield from self._starts_with("")
        open_brackets: list[str] = []
        quoted = escaped = begun = False
        while True:
            for i, character in enumerate(self._buffer):
                if quoted:
                    if escaped:
                        escaped = False
                    elif character == "\\":
                        escaped = True
                    elif character == '"':
                        quoted = False
                elif character in "{[":
                    open_brackets.append("}" if character == "{" else "]")
                elif character in "}]" and open_brackets:
                    open_brackets.pop()
                elif character == '"':
                    quoted = True
                elif character == "<" or (not open_brackets and character in ",]}: \n\r\t"):
                    sink(self._buffer[:i])
                    self._buffer = self._buffer[i:]
                    sink("".join(reversed(open_brackets)))
                    return begun
                else:
                    begun = True
                    continue
                begun = True
                if not open_brackets and not quoted:
                    sink(self._buffer[: i + 1])
                    self._buffer = self._buffer[i + 1 :]
                    return True
            sink(self._buffer)
            self._buffer = ""
            if self._ended:
                if not self._truncated:
                    sink(('"' if quoted else "") + "".join(reversed(open_brackets)))
                return begun
            yield

    # -- calls -------------------------------------------------------------------------------------------------------

    def _read_calls(self, marker: str) -> _Steps:
        raise NotImplementedError

    def _start(self, name: str) -> _Arguments:
        call = _Arguments(self._calls, self._out, self._schemas.get(name, {}))
        self._out.append(ToolStart(self._calls, "call_" + secrets.token_hex(12), name))
        self._calls += 1
        return call

    def _cut(self, marker: str | None) -> bool:
        """Whether the text was cut off here."""
        return marker is None and self._truncated

    def _read_value(self, call: _Arguments, key: str, types: frozenset[str] | None, ends: tuple[str, ...]) -> _Steps:
        """A value that is given as text, written as JSON: text as it comes, anything else when it is whole. Returns
        the marker that ended it."""
        call.key(key)
        if types == {"string"}:
            call.write('"')
            marker = yield from self._until(ends, lambda text: call.write(_escape(text)))
            call.write("" if self._cut(marker) else '"')
            return marker
        value, marker = yield from self._text_until(*ends)
        if self._cut(marker):
            may_be_text = types is None or "string" in types
            call.write('"' + _escape(value) if may_be_text else value.strip())
        else:
            call.write(typed(value, types))
        return marker


class _Arguments:
    """Writes the JSON text of one call's arguments."""

    def __init__(self, index: int, out: list[Delta], schema: Mapping):
        self._index, self._out, self._schema = index, out, schema
        self._properties = 0
        self._written = False

    def types(self, key: str) -> frozenset[str] | None:
        """What the tool's schema says of a parameter (`types_of`)."""
        properties = _resolve(self._schema, self._schema).get("properties") or {}
        return types_of(properties.get(key, True), self._schema)

    def write(self, fragment: str) -> None:
        if fragment:
            self._written = True
            self._out.append(ToolArguments(self._index, fragment))

    def key(self, key: str) -> None:
        self.write((", " if self._properties else "{") + json.dumps(key, ensure_ascii=False) + ": ")
        self._properties += 1

    def close(self) -> None:
        self.write("}" if self._properties else "{}")

    def close_if_empty(self) -> None:
        """Where a model wrote no arguments at all."""
        if not self._written:
            self.write("{}")


class _Glm(Parser):
    OPEN = ("<tool_call>",)
    CLOSE, KEY, END_KEY, VALUE, END_VALUE = "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

    def _read_calls(self, marker: str) -> _Steps:
        name, marker = yield from self._text_until("\n", self.KEY, self.CLOSE, *self.OPEN)
        while marker == "\n" and not name.strip():
            name, marker = yield from self._text_until("\n", self.KEY, self.CLOSE, *self.OPEN)
        if self._cut(marker):
            return  # half a name is no name
        if not name.strip():
            self._reopen(marker)
            return
        call = self._start(name.strip())
        if marker == "\n":
            marker = yield from self._starts_with(self.KEY, self.CLOSE, *self.OPEN)
        while marker == self.KEY:
            # A forgotten </arg_key> ends at the value, a forgotten <arg_value> begins after the key.
            key, marker = yield from self._text_until(self.END_KEY, self.VALUE, self.CLOSE)
            if marker is None:
                break
            if marker == self.END_KEY:
                yield from self._starts_with(self.VALUE)
            if marker != self.CLOSE:
                ends = (self.END_VALUE, self.KEY, self.CLOSE)
                marker = yield from self._read_value(call, key.strip(), call.types(key.strip()), ends)
            if marker == self.END_VALUE:
                marker = yield from self._starts_with(self.KEY, self.CLOSE, *self.OPEN)
        # Here the call is over, unless the text was cut off; other text that follows is content.
        if not (self._ended and self._truncated and marker is None and not self._buffer.strip()):
            call.close()
        self._reopen(marker)

    def _reopen(self, marker: str | None) -> None:
        if marker in self.OPEN:
            self._buffer = marker + self._buffer


class _Dsml(Parser):
    # DeepSeek-V4 says tool_calls where V3.2 says function_calls.
    OPEN = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")
    CLOSE = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")
    INVOKE, END_INVOKE = "<｜DSML｜invoke", "</｜DSML｜invoke>"
    PARAMETER, END_PARAMETER = "<｜DSML｜parameter", "</｜DSML｜parameter>"

    def _read_calls(self, marker: str | None) -> _Steps:
        while (yield from self._starts_with(self.INVOKE, *self.CLOSE)) == self.INVOKE:
            attributes, marker = yield from self._text_until(">")
            if marker is None:
                return
            call = self._start(_attribute(attributes, "name") or "")
            marker = yield from self._starts_with(self.PARAMETER, self.END_INVOKE)
            while marker == self.PARAMETER:
                attributes, marker = yield from self._text_until(">")
                if marker is None:
                    break
                key = _attribute(attributes, "name") or ""
                types = call.types(key)
                # The model says whether it is text; the tool's schema knows better where it excludes that.
                if _attribute(attributes, "string") == "true" and (types is None or "string" in types):
                    types = frozenset({"string"})
                ends = (self.END_PARAMETER, self.PARAMETER, self.END_INVOKE, *self.CLOSE)
                marker = yield from self._read_value(call, key, types, ends)
                if marker == self.END_PARAMETER:
                    marker = yield from self._starts_with(self.PARAMETER, self.END_INVOKE)
            if not (self._ended and self._truncated and marker is None and not self._buffer.strip()):
                call.close()
            if marker in self.CLOSE:
                return


class _DeepSeek(Parser):
    OPEN = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    CLOSE, BEGIN, SEPARATOR, END = (
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
    )

    def _read_calls(self, marker: str | None) -> _Steps:
        if marker != self.BEGIN:
            marker = yield from self._starts_with(self.BEGIN, self.CLOSE)
        while marker == self.BEGIN:
            name, marker = yield from self._text_until(self.SEPARATOR, self.END, self.CLOSE)
            if marker == self.SEPARATOR and self._format == "deepseek_v3":
                name, marker = yield from self._text_until("\n", self.END, self.CLOSE)
                yield from self._starts_with("```json")
            if marker is None:
                return
            call = self._start(name.strip())
            if marker not in (self.END, self.CLOSE):
                marker = yield from self._read_json(call)
            else:
                call.close()
            if marker == self.END:
                marker = yield from self._starts_with(self.BEGIN, self.CLOSE)

    def _read_json(self, call: _Arguments) -> _Steps:
        if not (yield from self._json_value(call.write)) and not self._truncated:
            call.close_if_empty()
        _, marker = yield from self._text_until(self.END, self.CLOSE, self.BEGIN)
        return marker


class _Hermes(Parser):
    OPEN = ("<tool_call>",)
    CLOSE = "</tool_call>"

    def _read_calls(self, marker: str | None) -> _Steps:
        empty = True
        while True:
            # SmolLM2 writes a list of calls between one pair of tags.
            found = yield from self._starts_with(self.CLOSE, "[", ",", "]", "{")
            if found in (None, self.CLOSE):
                break
            if found == "{":
                empty = False
                yield from self._read_call()
        if found is None and empty:
            # No call: what stands there is shown, without its tags.
            text, marker = yield from self._text_until(self.CLOSE, *self.OPEN)
            self._content(text)
            if marker in self.OPEN:
                self._buffer = marker + self._buffer

    def _read_call(self) -> _Steps:
        """One object, after its brace: the name, then the arguments, or the other way round."""
        raw = ["{"]
        name, arguments, call = None, None, None
        while (found := (yield from self._starts_with('"', ",", "}"))) not in (None, "}"):
            raw.append(found)
            if found == ",":
                continue
            self._buffer = '"' + self._buffer
            key = yield from self._json_text(raw)
            if (yield from self._starts_with(":")) is None:
                continue
            raw.append(":")
            if key == "name" and call is None:
                name = yield from self._json_text(raw)
            elif key in ("arguments", "parameters") and isinstance(name, str) and call is None:
                call = self._start(name)
                yield from self._read_arguments(call)
            else:
                pieces: list[str] = []
                yield from self._json_value(pieces.append)
                raw += pieces
                if key in ("arguments", "parameters"):
                    arguments = "".join(pieces)
        if call is None and isinstance(name, str) and not (found is None and self._ended and self._truncated):
            self._start(name).write(_object_text(arguments))
        elif call is None and not isinstance(name, str):
            self._content("".join(raw)[1:] + (found or ""))

    def _read_arguments(self, call: _Arguments) -> _Steps:
        if (yield from self._starts_with("{")):
            self._buffer = "{" + self._buffer
            yield from self._json_value(call.write)
            return
        pieces: list[str] = []
        yield from self._json_value(pieces.append)
        if pieces or not self._truncated:
            call.write(_object_text("".join(pieces)))

    def _json_text(self, raw: list[str]) -> _Steps:
        """A JSON string's text; None if something else stands there."""
        pieces: list[str] = []
        whole = yield from self._json_value(pieces.append)
        raw += pieces
        value = _parse("".join(pieces)) if whole else None
        return value if isinstance(value, str) else None


_FORMATS: dict[str, type[Parser]] = {
    "glm45": _Glm,
    "glm47": _Glm,
    "deepseek_v3": _DeepSeek,
    "deepseek_v31": _DeepSeek,
    "deepseek_v32": _Dsml,
    "hermes": _Hermes,
}


def typed(text: str, types: frozenset[str] | None) -> str:
    """A value that a model gave as plain text, as JSON text.

    Args:
        types: What the schema allows (`types_of`); None: it says nothing.

    What may be text and nothing else stays text; otherwise text that reads as JSON of an allowed type is that, text
    that does not is a string. Python's way of writing (True, None, single quotes) is understood where JSON fails.
    """
    if types == {"string"}:
        return json.dumps(text, ensure_ascii=False)
    literal = text.strip()
    value = _parse(literal)
    if value is _NOTHING:
        try:
            value = ast.literal_eval(literal)
            literal = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json.dumps(text, ensure_ascii=False)
    if types is not None and "string" in types and not _kinds(value) & (types - {"string"}):
        return json.dumps(text, ensure_ascii=False)
    return literal


def types_of(schema: Any, root: Mapping, depth: int = 0) -> frozenset[str] | None:
    """The JSON types that a schema allows; None where it does not say. `root` is what its `$ref` point into."""
    schema = _resolve(schema, root)
    if not isinstance(schema, Mapping) or depth > 16:
        return None
    known: list[frozenset[str]] = []
    if "type" in schema:
        names = schema["type"]
        known.append(frozenset([names] if isinstance(names, str) else names))
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if values is not None:
        known.append(frozenset().union(*(_kinds(value) for value in values)))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            parts = [types_of(part, root, depth + 1) for part in schema[word]]
            if None not in parts:
                known.append(frozenset().union(*parts))
    known += [types for part in schema.get("allOf", ()) if (types := types_of(part, root, depth + 1)) is not None]
    if not known:
        return frozenset({"object"}) if "properties" in schema else frozenset({"array"}) if "items" in schema else None
    return frozenset.intersection(*known)


def _resolve(schema: Any, root: Mapping) -> Any:
    """Follows local `$ref`."""
    for _ in range(16):
        if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#"):
            break
        target: Any = root
        for part in schema["$ref"][1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, Mapping) else None
        schema = target
    return schema


def _kinds(value: Any) -> frozenset[str]:
    """The JSON types that a value is of."""
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int | float):
        return frozenset({"number", "integer"} if value == int(value) else {"number"})
    return frozenset({"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"})


_NOTHING = object()


def _parse(text: str) -> Any:
    """A JSON text's value; `_NOTHING` if it is none."""
    try:
        return json.loads(text, parse_constant=lambda name: json.loads(""))
    except (ValueError, RecursionError):
        return _NOTHING


def _object_text(text: str | None) -> str:
    """Arguments as a JSON object's text: some models write the object as a string, some null."""
    value = _parse(text or "{}")
    if isinstance(value, str):
        text, value = value, _parse(value)
    return text if text and isinstance(value, dict) else "{}" if value in (None, "", _NOTHING) else text or "{}"


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _attribute(text: str, name: str) -> str | None:
    found = re.search(rf'\b{name}\s*=\s*"([^"]*)"', text)
    return found and found[1]
