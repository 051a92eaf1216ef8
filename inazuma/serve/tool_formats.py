"""How model families write tool calls: one parser a format. `ChatTemplate.detect` names a model's.

    glm45         <tool_call>name
                  <arg_key>k</arg_key>
                  <arg_value>v</arg_value>
                  </tool_call>
    glm47         the same without newlines
    deepseek_v32  <｜DSML｜function_calls>
                  <｜DSML｜invoke name="…">
                  <｜DSML｜parameter name="…" string="true|false">v</｜DSML｜parameter>
                  </｜DSML｜invoke>
                  </｜DSML｜function_calls>
    deepseek_v31  <｜tool▁calls▁begin｜>
                  <｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>
                  <｜tool▁calls▁end｜> (without these newlines)
    deepseek_v3   the same with function<｜tool▁sep｜>name, a newline and {…} in a ```json block
    hermes        <tool_call>{"name": "…", "arguments": {…}}</tool_call> (Qwen, SmolLM)

What models get wrong is read as they meant it, where that is plain: tags that are left out, values without a tag, one
call that begins within another. Where it is not, text is shown as content rather than lost, without its tags.
"""

from __future__ import annotations

import re

from inazuma.errors import UserError
from inazuma.serve.arguments import object_text, string_of
from inazuma.serve.stream_parser import Call, Parser, Steps


class _Glm(Parser):
    OPEN = ("<tool_call>",)
    CLOSE, KEY, END_KEY, VALUE, END_VALUE = "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
    AFTER = (KEY, CLOSE, *OPEN)
    """What may follow a parameter."""

    def _read_calls(self, marker: str) -> Steps:
        yield from self._starts_with("\n")
        name, marker = yield from self._text_until("\n", self.KEY, self.CLOSE, *self.OPEN)
        if self._cut_here(marker):
            return  # half a name is no name
        if not name.strip():
            self._unread(marker if marker in self.OPEN else None)
            return
        call = self._start(name.strip())
        if marker == "\n":
            marker = yield from self._next()
        while marker == self.KEY:
            key, marker = yield from self._text_until(self.END_KEY, self.VALUE, self.CLOSE)
            if marker is None:
                break
            if marker == self.END_KEY:
                yield from self._starts_with(self.VALUE)
            if marker != self.CLOSE:
                ends = (self.END_VALUE, self.KEY, self.CLOSE)
                marker = yield from self._read_value(call, key.strip(), call.types(key.strip()), ends, self.AFTER)
            if marker == self.END_VALUE:
                marker = yield from self._next()
        if not self._cut_here(marker):
            call.close()
        self._unread(marker if marker in self.OPEN else None)

    def _next(self) -> Steps:
        return (yield from self._starts_with(*self.AFTER))


class _Dsml(Parser):
    # DeepSeek-V4 says tool_calls where V3.2 says function_calls.
    OPEN = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")
    CLOSE = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")
    INVOKE, END_INVOKE = "<｜DSML｜invoke", "</｜DSML｜invoke>"
    PARAMETER, END_PARAMETER = "<｜DSML｜parameter", "</｜DSML｜parameter>"
    AFTER = (PARAMETER, END_INVOKE, INVOKE, *CLOSE)
    """What may follow a parameter."""

    def _read_calls(self, marker: str) -> Steps:
        while (yield from self._starts_with(self.INVOKE, *self.CLOSE)) == self.INVOKE:
            attributes, marker = yield from self._text_until(">")
            if marker is None:
                return
            call = self._start(_attribute(attributes, "name") or "")
            marker = yield from self._next()
            while marker == self.PARAMETER:
                attributes, marker = yield from self._text_until(">")
                if marker is None:
                    break
                key = _attribute(attributes, "name") or ""
                types = call.types(key)
                # The model says what is text; the tool's schema knows better where it excludes text.
                if _attribute(attributes, "string") == "true" and (types is None or "string" in types):
                    types = frozenset({"string"})
                ends = (self.END_PARAMETER, self.PARAMETER, self.END_INVOKE, *self.CLOSE)
                marker = yield from self._read_value(call, key, types, ends, self.AFTER)
                if marker == self.END_PARAMETER:
                    marker = yield from self._next()
            if not self._cut_here(marker):
                call.close()
            if marker in self.CLOSE:
                return
            self._unread(marker if marker == self.INVOKE else None)

    def _next(self) -> Steps:
        return (yield from self._starts_with(*self.AFTER))


class _DeepSeek(Parser):
    OPEN = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    CLOSE, BEGIN, SEPARATOR, END = "<｜tool▁calls▁end｜>", OPEN[1], "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

    def _read_calls(self, marker: str) -> Steps:
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
            if marker in (self.SEPARATOR, "\n"):
                yield from self._whole_json(call.write)
                _, marker = yield from self._text_until(self.END, self.CLOSE, self.BEGIN)
            if not self._cut_here(marker):
                call.close_if_empty()
            if marker == self.END:
                marker = yield from self._starts_with(self.BEGIN, self.CLOSE)


class _Hermes(Parser):
    OPEN = ("<tool_call>",)
    CLOSE = "</tool_call>"

    def _read_calls(self, marker: str) -> Steps:
        calls = False
        # SmolLM2 writes a list of calls between one pair of tags.
        while (found := (yield from self._starts_with(self.CLOSE, "{", "[", ",", "]"))) not in (None, self.CLOSE):
            if found == "{":
                calls = True
                yield from self._read_call()
        if found is None and not calls:
            text, marker = yield from self._text_until(self.CLOSE, *self.OPEN)
            self._content(text)
            self._unread(marker if marker in self.OPEN else None)

    def _read_call(self) -> Steps:
        """One object, after its brace."""
        name = arguments = call = None
        read = ["{"]
        while (found := (yield from self._starts_with('"', ",", "}"))) in ('"', ","):
            if found == ",":
                read.append(", ")
                continue
            self._unread('"')
            key = string_of((yield from self._json_text(read)))
            yield from self._starts_with(":")
            read.append(": ")
            if key in ("arguments", "parameters") and name is not None and call is None:
                call = self._start(name)
                yield from self._read_arguments(call)
                continue
            value = yield from self._json_text(read)
            if key == "name" and name is None:
                name = string_of(value)
            elif key in ("arguments", "parameters"):
                arguments = value
        if call is not None or self._cut_here(found):
            return
        if name is not None:
            self._start(name).write(object_text(arguments))
        else:
            self._content("".join(read) + (found or ""))

    def _read_arguments(self, call: Call) -> Steps:
        if (yield from self._starts_with("{")):
            self._unread("{")
            yield from self._whole_json(call.write)
            return
        text = yield from self._json_text([])
        if not self._cut_here(None if self._ended and not text else ""):
            call.write(object_text(text))

    def _json_text(self, read: list[str]) -> Steps:
        """One JSON value's text, also added to `read`."""
        pieces: list[str] = []
        yield from self._whole_json(pieces.append)
        read.extend(pieces)
        return "".join(pieces)


_FORMATS: dict[str, type[Parser]] = {
    "glm45": _Glm,
    "glm47": _Glm,
    "deepseek_v3": _DeepSeek,
    "deepseek_v31": _DeepSeek,
    "deepseek_v32": _Dsml,
    "hermes": _Hermes,
}


def parser_of(format: str | None) -> type[Parser]:
    """The class that reads a format; `Parser` itself where there is none."""
    if format is not None and format not in _FORMATS:
        raise UserError(f"tool format {format!r} is unknown; there are {', '.join(_FORMATS)}")
    return _FORMATS[format] if format else Parser


def _attribute(text: str, name: str) -> str | None:
    found = re.search(rf'\b{name}\s*=\s*"([^"]*)"', text)
    return found and found[1]
