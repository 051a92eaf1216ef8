"""Reading logs strictly: a log that was cut in half is an error here, never a shorter log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError


def strict_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of a JSON lines file; a `UserError` names the first line that is no JSON object."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None
    if not text.strip():
        raise UserError(f"{path}:1: the file is empty")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: cut off or damaged ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield f"{path.name}:{number}", record


def number(value: Any) -> float | None:
    """A finite number, also where it was written as text or truth value; None for everything else."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """An integer, or None."""
    found = number(value)
    return int(found) if found is not None and found == int(found) and not isinstance(value, bool) else None


def text(value: Any) -> str | None:
    """A text as it is, another plain value as text, a list as its first; None for nothing."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value if value is None or isinstance(value, str) else str(value)


def required(record: dict[str, Any], key: str, where: str) -> Any:
    """A field that a record must have."""
    if key not in record:
        raise UserError(f"{where}: no field {key!r}; is this another version of the format?")
    return record[key]
