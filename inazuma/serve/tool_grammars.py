"""Tool calls as grammars: each format of `tool_formats` in Lark (llguidance's dialect), with the tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llguidance import regex_to_lark

from inazuma.errors import UserError
from inazuma.serve.arguments import resolve, types_of

_ABOUT = {"title", "description", "default", "examples", "deprecated", "$comment", "readOnly", "writeOnly", "$schema"}
"""Words of a schema that say nothing about what is valid."""
_OF_OBJECTS = _ABOUT | {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$id"}
_OF_TEXT = _ABOUT | {"type", "enum", "const", "pattern", "minLength", "maxLength", "format"}

_DATE = r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_TEXT_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "email": r"[A-Za-z0-9_+\-]+(\.[A-Za-z0-9_+\-]+)*@[A-Za-z0-9]([A-Za-z0-9\-]*[A-Za-z0-9])?(\.[A-Za-z0-9]+)+",
    "uri": r"[a-z][a-z0-9+.\-]*://[A-Za-z0-9.\-]+(:[0-9]{1,4})?(/[A-Za-z0-9._~%\-]*)*(\?[A-Za-z0-9._~=&%\-]*)?",
}
"""Formats of text (RFC 3339, 4122, 791, 5321, 3986), narrower than those allow where that keeps them simple."""


def tool_call_grammar(tools: Sequence[Mapping], format: str | None, parallel: bool, special: Mapping[str, int]) -> str:
    """The grammar of one or, if `parallel`, several calls and nothing else.

    Args:
        special: The tokenizer's special tokens by name: a marker that is one can be written in no other way.

    Raises:
        UserError: The format is unknown, or a tool's parameters have what it cannot guarantee.
    """
    if format not in _GRAMMARS:
        raise UserError(f"tool_choice: calls cannot be guaranteed in this model's format ({format})")
    lark = _Lark(special)
    calls = []
    for tool in tools:
        name = tool["function"]["name"]
        if not re.fullmatch(r"[^<>\"\n]+", name):
            raise UserError(f"tools: {name!r} is not a function's name")
        parameters = tool["function"].get("parameters") or {"type": "object", "properties": {}}
        calls.append(lark.rule(_GRAMMARS[format](lark, name, parameters)))
    begin, between, end = _AROUND[format]
    call = f"({' | '.join(calls)})"
    more = f"({lark.text(between)} {call})*" if parallel else ""
    newlines = '"\\n"? "\\n"?'  # templates write them before the calls
    lark.rules.append(f"start: {newlines} {lark.text(begin)} {call} {more} {lark.text(end)}")
    return "\n".join(lark.rules)


class _Lark:
    """The grammar's rules, written one after another."""

    def __init__(self, special: Mapping[str, int]):
        self._special = special
        names = sorted(map(re.escape, special), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(names)})") if names else re.compile("(?!)")
        self.rules: list[str] = []

    def rule(self, body: str, options: str = "") -> str:
        """Adds a rule; its name."""
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name

    def text(self, text: str) -> str:
        """A text that stands as it is; empty for none."""
        return " ".join(
            f"<[{self._special[piece]}]>" if piece in self._special else json.dumps(piece, ensure_ascii=False)
            for piece in self._split.split(text)
            if piece
        )

    def _parted(self, text: str) -> tuple[str, str, str]:
        """(text before the first special token, the token, the rest)"""
        before, *rest = self._split.split(text, maxsplit=1)
        return (before, *rest) if rest else (before, "", "")

    def json(self, schema: Any, root: Mapping) -> str:
        """JSON that a schema within `root` accepts."""
        if isinstance(schema, Mapping) and "$ref" in json.dumps(schema):
            schema = {**_moved(schema), "$defs": {"root": _moved(root)}}
        if schema is True:
            schema = {}
        return f"%json {json.dumps(schema)}"

    def text_value(self, schema: Mapping, end: str, avoid: tuple[str, ...], where: str) -> str:
        """Plain text that a schema of strings accepts, and the marker that ends it."""
        if unknown := sorted(set(schema) - _OF_TEXT):
            raise UserError(f"{where}: {', '.join(map(repr, unknown))} cannot be guaranteed in this model's tool calls")
        values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
        if values is not None:
            texts = [value for value in values if isinstance(value, str)]
            return "(" + " | ".join(self.text(value + end) for value in texts) + ")"
        terms = ["/(?s:.*)/"]
        if "minLength" in schema or "maxLength" in schema:
            terms.append(f"/(?s:.){{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}/")
        if "pattern" in schema:
            pattern = schema["pattern"]
            before = "" if pattern.startswith("^") else "(?s:.*)"
            after = "" if re.search(r"(?<!\\)(\\\\)*\$$", pattern) else "(?s:.*)"
            pattern = pattern[0 if before else 1 : None if after else -1]
            terms.append(f"/{before}({regex_to_lark(pattern, 'dw')}){after}/")
        if "format" in schema:
            if schema["format"] not in _TEXT_FORMATS:
                raise UserError(f"{where}: format {schema['format']!r} cannot be guaranteed in this model's tool calls")
            terms.append(f"/{regex_to_lark(_TEXT_FORMATS[schema['format']], '')}/")
        before, special, after = self._parted(end)
        atomic = [end] if special else []
        markers = "|".join(regex_to_lark(re.escape(marker), "") for marker in (*avoid, *atomic))
        terms.append(f"~/(?s:.*)({markers})(?s:.*)/")
        terminal = f"T{len(self.rules)}"
        self.rules.append(f"{terminal}: {' & '.join(terms)}")
        if not special:
            return self.rule(f"{terminal} {self.text(end)}", "[lazy]")
        # A special token ends the text wherever it comes; what stands before it in the marker is the text's own end.
        if before:
            self.rules.append(f"{terminal}E: {terminal} {json.dumps(before)}")
            terminal += "E"
        return f"{terminal} {self.text(special + after)}"

    def values(self, schema: Any, root: Mapping, form: _Form, where: str) -> list[tuple[bool, str]]:
        """Ways to write a value and the marker after it: (whether it is text, grammar)."""
        schema = resolve(schema, root)
        types = types_of(schema, root)
        if schema is True or (isinstance(schema, Mapping) and not set(schema) - _ABOUT):
            return [(True, self.text_value({}, form.end, form.avoid, where))]  # whatever it reads as is valid
        if not isinstance(schema, Mapping) or types is None or "string" not in types:
            return [(False, f"{self.json(schema, root)} {self.text(form.end)}")]
        for word in ("anyOf", "oneOf"):
            if word in schema and not set(schema) - {word} - _ABOUT:
                return [way for part in schema[word] for way in self.values(part, root, form, where)]
        ways = [(True, self.text_value(schema, form.end, form.avoid, where))]
        others = sorted(types - {"string"})
        if others:
            ways.append((False, f"{self.json({**schema, 'type': others}, root)} {self.text(form.end)}"))
        return ways

    def parameters(self, schema: Mapping, form: _Form, tool: str) -> str:
        """The parameters of a call in formats that write one after another."""
        root, where = schema, f"tools: {tool}: parameters"
        schema = resolve(schema, root)
        if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
            raise UserError(f"{where}: must be an object's schema")
        if unknown := sorted(set(schema) - _OF_OBJECTS):
            raise UserError(f"{where}: {', '.join(map(repr, unknown))} cannot be guaranteed in this model's tool calls")
        required = schema.get("required", ())
        if "properties" not in schema and not required and schema.get("additionalProperties", True) is not False:
            value = schema.get("additionalProperties", True)
            ways = self._ways(form, "KEY", value, root, where)
            self.rules.append(r'KEY: /[^<>"\n\\]{1,64}/')
            return f"({ways})*"
        properties = dict.fromkeys(required, True) | dict(schema.get("properties", {}))
        order = [
            *schema.get("properties", {}),
            *(name for name in required if name not in schema.get("properties", {})),
        ]
        written = []
        for name in order:
            if re.search(r'[<>"\n]', name):
                raise UserError(f"{where}: {name!r} cannot be a parameter's name in this model's tool calls")
            ways = self._ways(form, None, properties[name], root, f"{where}.{name}", name)
            written.append(f"({ways})" + ("" if name in required else "?"))
        return " ".join(written)

    def _ways(self, form: _Form, key: str | None, schema: Any, root: Mapping, where: str, name: str = "") -> str:
        ways = []
        for is_text, value in self.values(schema, root, form, where):
            before, after = form.before, form.after(is_text)
            head = f"{self.text(before)} {key} {self.text(after)}" if key else self.text(before + name + after)
            ways.append(self.rule(f"{head} {value} {self.text(form.between)}"))
        return " | ".join(ways)


class _Form(NamedTuple):
    """How a format writes a parameter: before the name, after it, after the value, and what ends values too early."""

    before: str
    after: Callable[[bool], str]
    end: str
    between: str
    avoid: tuple[str, ...]


def _glm(line: str) -> Callable[[_Lark, str, Mapping], str]:
    form = _Form(
        "<arg_key>", lambda is_text: f"</arg_key>{line}<arg_value>", "</arg_value>", line, ("<arg_key>", "</tool_call>")
    )

    def call(lark: _Lark, name: str, schema: Mapping) -> str:
        parameters = lark.parameters(schema, form, name)
        return f"{lark.text(f'<tool_call>{name}{line}')} {parameters} {lark.text('</tool_call>')}"

    return call


_DSML = _Form(
    '<｜DSML｜parameter name="',
    lambda is_text: f'" string="{"true" if is_text else "false"}">',
    "</｜DSML｜parameter>",
    "\n",
    ("<｜DSML｜", "</｜DSML｜invoke>", "</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"),
)


def _dsml(lark: _Lark, name: str, schema: Mapping) -> str:
    parameters = lark.parameters(schema, _DSML, name)
    begin, end = lark.text(f'<｜DSML｜invoke name="{name}">\n'), lark.text("</｜DSML｜invoke>\n")
    return f"{begin} {parameters} {end}"


def _around_json(before: str, after: str) -> Callable[[_Lark, str, Mapping], str]:
    def call(lark: _Lark, name: str, schema: Mapping) -> str:
        return f"{lark.text(before.replace('NAME', name))} {lark.json(schema, schema)} {lark.text(after)}"

    return call


_V3_BEGIN, _V3_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_V3_CALL, _V3_SEPARATOR, _V3_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_GRAMMARS: dict[str | None, Callable[[_Lark, str, Mapping], str]] = {
    "glm45": _glm("\n"),
    "glm47": _glm(""),
    "deepseek_v3": _around_json(f"{_V3_CALL}function{_V3_SEPARATOR}NAME\n```json\n", f"\n```{_V3_CALL_END}"),
    "deepseek_v31": _around_json(f"{_V3_CALL}NAME{_V3_SEPARATOR}", _V3_CALL_END),
    "deepseek_v32": _dsml,
    "hermes": _around_json('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),
}
_AROUND = {
    "glm45": ("", "\n", ""),
    "glm47": ("", "", ""),
    "deepseek_v3": (_V3_BEGIN, "\n", _V3_END),
    "deepseek_v31": (_V3_BEGIN, "", _V3_END),
    "deepseek_v32": ("<｜DSML｜function_calls>\n", "", "</｜DSML｜function_calls>"),
    "hermes": ("", "\n", ""),
}
"""Before the first call, between two, after the last."""


def _moved(schema: Any) -> Any:
    """A schema whose local references point into `#/$defs/root`."""
    if isinstance(schema, Mapping):
        return {
            word: "#/$defs/root" + value[1:] if word == "$ref" and str(value).startswith("#") else _moved(value)
            for word, value in schema.items()
        }
    return [_moved(part) for part in schema] if isinstance(schema, list | tuple) else schema
