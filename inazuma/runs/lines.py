"""JSON lines: one record a line, appended as the work goes on, readable after the process was killed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inazuma.errors import UserError


def encode_line(values: Mapping[str, Any]) -> bytes:
    """One record as a line of UTF-8 JSON; a float that is not finite becomes the text "nan", "inf" or "-inf"."""
    return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in order.

    A last line without its line break is what a killed process left of one, and is ignored. A missing file, or any
    other line that is no JSON object, is a `UserError` that names it.
    """
    for number, line in enumerate(whole_lines(path), start=1):
        yield decode_line(line, f"{path}:{number}")


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as they are, line breaks included and a torn last one left out."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as handle:
        yield from (line for line in handle if line.endswith(b"\n"))


def decode_line(line: bytes, where: str) -> dict[str, Any]:
    """The record of one line; `UserError` says `where` it is damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a damaged line (not a JSON object)")
    return record
