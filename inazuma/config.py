"""Configuration: typed dataclasses in Python, YAML on disk, `section.field=value` on the command line.

A dataclass is the whole schema: its annotations are checked, its defaults fill what the file leaves out, and its
`__post_init__` judges what types cannot say. Understood are nested dataclasses, `list[X]`, `tuple[X, ...]`,
`tuple[X, Y]`, `dict[str, X]`, unions such as `X | None`, `Literal`, `Path`, `int`, `float`, `bool`, `str` and `Any`.
Every mistake is a `UserError` that names the file and the dotted field.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import re
import types
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from inazuma.errors import UserError

T = TypeVar("T")

# YAML 1.1 reads `1e-3` and `1e6` as text, because it wants a dot and a sign (`1.0e-3`); people mean the number.
_EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d{1,4}")


def load(cls: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file as an instance of the dataclass `cls`, with `overrides` such as `train.stages.0.tokens=5`.

    An override's value is read as YAML; a number in its path indexes a list, and sections the file lacks are made.
    Raises `UserError` for a file that is missing or not YAML, and for everything `from_dict` refuses.
    """
    mapping = override(_read_yaml(Path(path)), overrides)
    where = str(path)
    if overrides:
        where += " with " + " ".join(f"--set {one}" for one in overrides)
    return from_dict(cls, mapping, where=where)


def from_dict(cls: type[T], mapping: Any, *, where: str) -> T:
    """Builds the dataclass `cls` out of plain values; `where` (a file's name) starts every error message.

    Integers are accepted for floats, and `1e-3` or `1e6` for the number they spell although YAML takes them for text;
    a bool is never a number. An unknown key, a missing one or a value of another type is a `UserError` that names the
    field, and so is a `ValueError` raised by a `__post_init__`.
    """
    return _dataclass(cls, mapping, where, "")


def override(mapping: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`mapping`, changed in place by overrides such as `train.stages.0.tokens=5`; `UserError` where one cannot be."""
    for one in overrides:
        _override(mapping, one)
    return mapping


def to_dict(instance: Any) -> dict[str, Any]:
    """The plain, JSON-able values of a dataclass; `from_dict` makes an equal instance of them."""
    return {field.name: _plain(getattr(instance, field.name)) for field in dataclasses.fields(instance) if field.init}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


# ------------------------------------------------------------------------------------------- YAML and overrides


class _Loader(yaml.SafeLoader):
    """The safe loader, except that a key written twice is an error instead of a silent choice of the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} is written twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise UserError(f"{where}:{line} not valid YAML ({error.problem or error.context})") from None
    except (yaml.YAMLError, ValueError) as error:
        # A ValueError is a date that does not exist, such as 2024-13-01.
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    value = _parse(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of fields, found {_describe(value)}")
    return value


def _override(mapping: dict[str, Any], override: str) -> None:
    """Changes `mapping` in place as `a.0.b=value` says."""
    where = f"--set {override}"
    field, equals, text = override.partition("=")
    keys = field.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{where}: expected section.field=value")
    value = _parse(text, where)
    here: Any = mapping
    for depth, key in enumerate(keys):
        path = ".".join(keys[: depth + 1])
        if isinstance(here, list):
            if not key.isdecimal() or int(key) >= len(here):
                raise UserError(f"{where}: {path}: the list has items 0 to {len(here) - 1}, not {key!r}")
            key = int(key)
        elif not isinstance(here, dict):
            raise UserError(f"{where}: {path}: {'.'.join(keys[:depth])} is {_describe(here)} and has no fields")
        if depth == len(keys) - 1:
            here[key] = value
        else:
            if isinstance(here, dict) and here.get(key) is None:
                if keys[depth + 1].isdecimal():
                    raise UserError(f"{where}: {path}: the file has no such list; write the list there first")
                here[key] = {}
            here = here[key]


# ------------------------------------------------------------------------------------------------ values to types


def _dataclass(cls: type[T], value: Any, where: str, field: str) -> T:
    if not isinstance(value, dict):
        raise _error(where, field, f"expected a mapping of fields, found {_describe(value)}")
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    for key in value:
        if key not in fields:
            raise _error(where, _join(field, key), f"unknown key; {_nearest(str(key), list(fields))}")
    hints = get_type_hints(cls)
    arguments = {}
    for name, item in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], where, _join(field, name))
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _error(where, _join(field, name), f"missing; expected {_name(hints[name])}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise _error(where, field, str(error)) from None


def _convert(kind: Any, value: Any, where: str, field: str) -> Any:
    """`value` as the annotation `kind` says, or a `UserError`."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where, field)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(kind, arguments, value, where, field)
    wrong = _error(where, field, f"expected {_name(kind)}, found {_describe(value)}")
    if origin is Literal:
        for choice in arguments:
            if type(choice) is type(value) and choice == value:
                return choice
        raise wrong
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            raise wrong
        kinds = arguments
        if origin is list or arguments[-1] is Ellipsis:
            kinds = (arguments[0],) * len(value)
        if len(kinds) != len(value):
            raise _error(where, field, f"expected {_name(kind)}, found {len(value)} items")
        return origin(_convert(k, v, where, _join(field, i)) for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong
        for key in value:
            if not isinstance(key, str):
                raise _error(where, _join(field, key), f"expected a key of text, found {_describe(key)}; quote it")
        return {key: _convert(arguments[1], item, where, _join(field, key)) for key, item in value.items()}
    scalar = _scalar(kind, value)
    if scalar is None:
        raise wrong
    return scalar


def _union(kind: Any, members: tuple[Any, ...], value: Any, where: str, field: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if isinstance(value, dict):
        # Of several dataclasses the one meant is the one that knows the most of the keys.
        shapes = [member for member in members if dataclasses.is_dataclass(member)]
        shapes.sort(key=lambda shape: -len(value.keys() & {field.name for field in dataclasses.fields(shape)}))
        members = tuple(shapes[:1]) or members
    if len(members) == 1:
        return _convert(members[0], value, where, field)
    for member in members:
        try:
            return _convert(member, value, where, field)
        except UserError:
            continue
    raise _error(where, field, f"expected {_name(kind)}, found {_describe(value)}")


def _scalar(kind: type, value: Any) -> Any:
    """`value` as a bool, str, Path, int or float; None where it is none."""
    if kind is bool or kind is str:
        return value if isinstance(value, kind) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | Path) else None
    if kind not in (int, float):
        raise TypeError(f"a configuration cannot hold {kind!r}")
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if kind is int:
        return int(value) if math.isfinite(value) and value == int(value) else None
    try:
        number = float(value)
    except OverflowError:
        return None
    # NaN and infinity are refused: they are not JSON, and every configuration is kept as JSON beside its run.
    return number if math.isfinite(number) else None


# --------------------------------------------------------------------------------------------------- messages


def _error(where: str, field: str, message: str) -> UserError:
    return UserError(": ".join(part for part in (where, field, message) if part))


def _join(field: str, key: Any) -> str:
    return f"{field}.{key}" if field else str(key)


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


_NAMES = {bool: "true or false", str: "text", Path: "a path", int: "a whole number", float: "a finite number"}


def _name(kind: Any) -> str:
    """An annotation in words."""
    if kind is None or kind is type(None):
        return "nothing"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"a list (of {_name(arguments[0])})"
    if origin is tuple:
        return f"a list of {len(arguments)} items ({', '.join(map(_name, arguments))})"
    if origin is dict:
        return f"a mapping (to {_name(arguments[1])})"
    return "a mapping of fields" if dataclasses.is_dataclass(kind) else _NAMES.get(kind, str(kind))


def _describe(value: Any) -> str:
    """A value found where another was expected, short enough for one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()} (quote it if text is meant)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, datetime.date):
        return f"the date {value} (quote it if text is meant)"
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else f"the number {text}"
