"""The arguments of a tool call as JSON text, typed by the tool's schema: most formats give values as plain text."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

_NOTHING = object()
_DEEPEST = 16
"""Steps from `$ref` to `$ref`, or from schema to part, that are followed."""


def types_of(schema: Any, root: Mapping, depth: int = 0) -> frozenset[str] | None:
    """The JSON types that a schema allows; None where it does not say. `root` is what its `$ref` point into."""
    schema = resolve(schema, root)
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    known: list[frozenset[str]] = []
    if "type" in schema:
        names = schema["type"]
        known.append(frozenset([names] if isinstance(names, str) else names))
    values = schema["enum"] if "enum" in schema else [schema["const"]] if "const" in schema else None
    if values is not None:
        known.append(frozenset().union(*map(_kinds, values)))
    for word in ("anyOf", "oneOf"):
        parts = [types_of(part, root, depth + 1) for part in schema.get(word, ())]
        if parts and None not in parts:
            known.append(frozenset().union(*parts))
    known += [types for part in schema.get("allOf", ()) if (types := types_of(part, root, depth + 1)) is not None]
    if not known:
        return frozenset({"object"}) if "properties" in schema else frozenset({"array"}) if "items" in schema else None
    return frozenset.intersection(*known)


def resolve(schema: Any, root: Mapping) -> Any:
    """The schema that a local `$ref` points at (None if it points nowhere); other schemas as they are."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#"):
            break
        target: Any = root
        for part in schema["$ref"][1:].split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            target = target.get(part) if isinstance(target, Mapping) else None
        schema = target
    return schema


def typed(text: str, types: frozenset[str] | None) -> str:
    """A value that a model gave as plain text, as JSON text.

    What may be text and nothing else stays text. Else text that reads as JSON of an allowed type is that, and text that
    does not is a string. Python's way of writing (True, None, single quotes) is understood where JSON's fails.

    Args:
        types: What the schema allows (`types_of`); None: it does not say.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    value, literal = _read(text)
    if value is _NOTHING:
        return quoted
    if types is not None and "string" in types and not _kinds(value) & (types - {"string"}):
        return quoted
    return literal


def readable(text: str) -> bool:
    """Whether a text reads as JSON, or as Python writes it."""
    return _read(text)[0] is not _NOTHING


def object_text(text: str | None) -> str:
    """Arguments as the text of a JSON object: some models write the object as a string, or null for none."""
    value = _parse(text or "{}")
    if isinstance(value, str):
        text, value = value, _parse(value)
    return "{}" if text is None or value is None or value == "" else text


def string_of(text: str) -> str | None:
    """The string that a JSON text is; None if it is something else."""
    value = _parse(text)
    return value if isinstance(value, str) else None


def escape(text: str) -> str:
    """A piece of text as it stands within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _kinds(value: Any) -> frozenset[str]:
    """The JSON types that a value is of."""
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int | float):
        return frozenset({"number", "integer"} if value == value // 1 else {"number"})
    return frozenset({"string" if isinstance(value, str) else "object" if isinstance(value, Mapping) else "array"})


def _read(text: str) -> tuple[Any, str]:
    """(the value, its JSON text); `_NOTHING` where a text cannot be read."""
    literal = text.strip()
    value = _parse(literal)
    if value is _NOTHING:
        try:
            value = ast.literal_eval(literal)
            literal = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return _NOTHING, ""
    return value, literal


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def _parse(text: str) -> Any:
    """A JSON text's value; `_NOTHING` if it is none."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return _NOTHING
