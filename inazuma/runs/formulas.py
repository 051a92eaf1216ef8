"""How reported figures follow from raw records: the one place that producers and `inazuma verify` both compute with.

A record is a file inside the run folder, JSON lines unless said otherwise. Evidence says for each figure which formula
made it of which record:

    {"bits_per_byte.sparse": {"formula": "bits_per_byte", "record": "records/sparse.jsonl"},
     "bits_per_byte.gap": {"formula": "relative_difference", "of": ["bits_per_byte.sparse", "bits_per_byte.dense"]}}

A formula is a function below that is marked `@formula`: its parameters are what the evidence may say, and its
docstring what the figure is. Nothing here needs PyTorch, so that anyone can check a run on any machine.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.runs.intervals import bootstrap_ratio
from inazuma.runs.lines import read_lines

FORMULAS: dict[str, Callable[..., Any]] = {}
Evidence = Mapping[str, Mapping[str, Any]]
Field = str | Sequence[Any]


def formula(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function `(figures, *, ...)` known to evidence by its name."""
    FORMULAS[function.__name__.rstrip("_")] = function
    return function


class Figures:
    """The figures that `evidence` promises, computed from the records in `folder`, each once."""

    def __init__(self, folder: Path, evidence: Evidence) -> None:
        self.folder = Path(folder)
        self.evidence = evidence
        self._computed: dict[str, Any] = {}
        self._computing: list[str] = []
        self.lines = functools.cache(self._lines)

    def figure(self, name: str) -> Any:
        """The figure of this dotted name; a `UserError` that names it when records or evidence do not give one."""
        if name in self._computed:
            return self._computed[name]
        if name not in self.evidence:
            raise UserError(f"{name}: no evidence says how this figure is computed")
        if name in self._computing:
            raise UserError(f"{name}: the figure is computed from itself ({' -> '.join([*self._computing, name])})")
        self._computing.append(name)
        try:
            value = self._compute(dict(self.evidence[name]))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        finally:
            self._computing.pop()
        self._computed[name] = value
        return value

    def _compute(self, arguments: dict[str, Any]) -> Any:
        name = arguments.pop("formula", None)
        if name not in FORMULAS:
            raise UserError(f"unknown formula {name!r}; known are {', '.join(FORMULAS)}")
        try:
            value = FORMULAS[name](self, **arguments)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            # Arguments that the formula does not have, or of a kind it cannot use: the evidence is what is wrong.
            raise UserError(f"formula {name}: {error}") from None
        if not _is_figure(value):
            raise UserError(f"formula {name} gives {value!r}; a figure is a finite number, a text or a list of them")
        return value

    def record_path(self, record: str) -> Path:
        """Where a record lies; a `UserError` when that is not inside the run folder."""
        path = self.folder / record
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{record}: a record must lie inside the run folder")
        return path

    def _lines(self, record: str) -> list[dict[str, Any]]:
        return list(read_lines(self.record_path(record)))

    def table(self, record: str, columns: Sequence[str], where: Mapping[str, Any] | None = None) -> list[list[Any]]:
        """The columns' values over the lines that have them and agree with `where`, which maps columns to values.

        A line with only some of the columns, or a record without any line to read, is a `UserError`.
        """
        rows = []
        for number, line in enumerate(self.lines(record), start=1):
            if not any(name in line for name in columns):
                continue
            if all(key in line and line[key] == wanted for key, wanted in (where or {}).items()):
                missing = [name for name in columns if name not in line]
                if missing:
                    raise UserError(f"{record}:{number}: the line has no {missing[0]!r}")
                rows.append([line[name] for name in columns])
        if not rows:
            names = " and ".join(map(repr, columns))
            raise UserError(f"{record}: no line has {names}" + (f" where {dict(where)}" if where else ""))
        return rows

    def column(self, record: str, column: str, where: Mapping[str, Any] | None = None) -> list[float]:
        """One column of `table`, all numbers."""
        return [_number(row[0], f"{record}: {column!r}") for row in self.table(record, [column], where)]


def _is_figure(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_figure, value))
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{what} is {value!r}, not a number")
    return value


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        raise UserError("division by zero")
    return numerator / denominator


@formula
def bits_per_byte(figures: Figures, *, record: str, where: Mapping[str, Any] | None = None) -> float:
    """Sum of `nll` (nats) / ln 2 / sum of `bytes` (raw UTF-8 bytes of the text that was predicted)."""
    nats, size = (math.fsum(column) for column in _nats_and_bytes(figures, record, where))
    return _ratio(nats / math.log(2), size)


@formula
def mean(figures: Figures, *, record: str, column: str, where: Mapping[str, Any] | None = None) -> float:
    """The mean of a column over the lines that have it."""
    values = figures.column(record, column, where)
    return math.fsum(values) / len(values)


@formula
def sum_(figures: Figures, *, record: str, column: str, where: Mapping[str, Any] | None = None) -> float:
    """The sum of a column over the lines that have it."""
    return math.fsum(figures.column(record, column, where))


@formula
def median(figures: Figures, *, record: str, column: str, where: Mapping[str, Any] | None = None) -> float:
    """The median of a column over the lines that have it."""
    return statistics.median(figures.column(record, column, where))


@formula
def greatest_rate(
    figures: Figures, *, record: str, columns: Sequence[str], where: Mapping[str, Any] | None = None
) -> float:
    """The greatest quotient of two columns, such as bytes and seconds, over the lines that have both."""
    return max(_rates(figures, record, columns, where))


@formula
def median_rate(
    figures: Figures, *, record: str, columns: Sequence[str], where: Mapping[str, Any] | None = None
) -> float:
    """The median of the quotients of two columns, such as tokens and seconds, over the lines that have both."""
    return statistics.median(_rates(figures, record, columns, where))


@formula
def rate_range(
    figures: Figures, *, record: str, columns: Sequence[str], where: Mapping[str, Any] | None = None
) -> list[float]:
    """[least, greatest] of the quotients of two columns over the lines that have both."""
    rates = _rates(figures, record, columns, where)
    return [min(rates), max(rates)]


def _rates(figures: Figures, record: str, columns: Sequence[str], where: Mapping[str, Any] | None) -> list[float]:
    if len(columns) != 2:
        raise UserError(f"'columns' must name 2 columns, got {len(columns)}")
    rows = figures.table(record, columns, where)
    return [_ratio(*(_number(x, f"{record}: {name!r}") for x, name in zip(row, columns, strict=True))) for row in rows]


@formula
def count(figures: Figures, *, record: str, column: str, where: Mapping[str, Any] | None = None) -> int:
    """How many lines have a column."""
    return len(figures.table(record, [column], where))


@formula
def last(figures: Figures, *, record: str, column: str, where: Mapping[str, Any] | None = None) -> Any:
    """A column's value in the last line that has it: a number, or a list as it was recorded."""
    return figures.table(record, [column], where)[-1][0]


@formula
def value(figures: Figures, *, record: str, field: Field) -> Any:
    """A constant that was recorded: the value at a field of a JSON file (see `_at`)."""
    return _at(figures, record, field)


@formula
def median_at(figures: Figures, *, record: str, field: Field) -> float:
    """The median of the numbers that were recorded at a field of a JSON file (see `_at`)."""
    return _median_at(figures, record, field)


@formula
def ratio_at(figures: Figures, *, record: str, field: Field = (), of: Sequence[Field]) -> float:
    """The median of the numbers at one field of a JSON file over that at another, both below `field` (see `_at`)."""
    if len(of) != 2:
        raise UserError(f"'of' must name 2 fields, got {len(of)}")
    return _ratio(*(_median_at(figures, record, [*_keys(field), *_keys(one)]) for one in of))


def _keys(field: Field) -> list[Any]:
    return field.split(".") if isinstance(field, str) else list(field)


def _at(figures: Figures, record: str, field: Field) -> Any:
    """What stands at a field: dotted, or a list of keys where these have dots in them.

    A key is a mapping's key or a list's place; a mapping as a key, such as {what: forward, length: 8192}, is the one
    item of a list that has these values, wherever it stands.
    """
    here = read_json(figures.record_path(record))
    for key in _keys(field):
        if isinstance(key, Mapping):
            items = [item for item in here if isinstance(item, dict)] if isinstance(here, list) else []
            items = [item for item in items if all(item.get(name) == wanted for name, wanted in key.items())]
            if len(items) != 1:
                raise UserError(f"{record}: {len(items)} items have {dict(key)}, not one")
            here = items[0]
        elif isinstance(here, list) and str(key).isdecimal() and int(key) < len(here):
            here = here[int(key)]
        elif isinstance(here, dict) and key in here:
            here = here[key]
        else:
            raise UserError(f"{record}: no field {field!r}")
    return here


def _median_at(figures: Figures, record: str, field: Field) -> float:
    found = _at(figures, record, field)
    numbers = [_number(item, f"{record}: {field!r}") for item in (found if isinstance(found, list) else [found])]
    if not numbers:
        raise UserError(f"{record}: {field!r} is an empty list")
    return statistics.median(numbers)


def _two(figures: Figures, of: Sequence[str]) -> tuple[float, float]:
    if len(of) != 2:
        raise UserError(f"expected two figures, found {len(of)}")
    first, second = (_number(figures.figure(name), name) for name in of)
    return first, second


@formula
def difference(figures: Figures, *, of: Sequence[str]) -> float:
    """The first figure minus the second."""
    first, second = _two(figures, of)
    return first - second


@formula
def ratio(figures: Figures, *, of: Sequence[str]) -> float:
    """The first figure divided by the second."""
    return _ratio(*_two(figures, of))


@formula
def relative_difference(figures: Figures, *, of: Sequence[str]) -> float:
    """(first − second) / second."""
    first, second = _two(figures, of)
    return _ratio(first - second, second)


@formula
def roofline_share(figures: Figures, *, of: Sequence[str]) -> float:
    """Achieved speed over what the roofline allows: achieved / min(product, intensity * bandwidth).

    `of` names the achieved speed and that of a large matrix product (FLOP/s), the copy bandwidth (bytes/s), and the
    arithmetic intensity (FLOP/byte). Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009.
    """
    if len(of) != 4:
        raise UserError(f"'of' must name 4 figures, got {len(of)}")
    achieved, product, bandwidth, intensity = (_number(figures.figure(name), name) for name in of)
    return _ratio(achieved, min(product, intensity * bandwidth))


@formula
def lengths_ahead(figures: Figures, *, of: Mapping[str, str]) -> list[int]:
    """The longest lengths in a row, ascending, at which a figure is above 1; `of` maps each length to its figure.

    Of a ratio of times that is where something is faster and stays so: the first of these lengths is the cross-over.
    """
    ahead: list[int] = []
    for length in sorted(map(int, of), reverse=True):
        name = of[str(length)]
        if _number(figures.figure(name), name) <= 1:
            break
        ahead.insert(0, length)
    return ahead


@formula
def bootstrap_interval(
    figures: Figures,
    *,
    record: str,
    seed: int,
    against: str | None = None,
    level: float = 0.95,
    resamples: int = 2000,
) -> list[float]:
    """Percentile bootstrap over documents: [low, high] of bits per byte, or of its paired relative difference.

    Documents are drawn with replacement, as many as there are, and the figure is computed of each draw. With `against`,
    a second record of the same documents, a draw takes the same documents of both, and the figure is
    (bits per byte − bits per byte of `against`) / bits per byte of `against`. Lines of one document are added up.
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    ours = _documents(figures, record)
    names = list(ours)
    nats, size = np.array([ours[name] for name in names], dtype=np.float64).T
    if against is None:
        numerator, denominator, offset = nats / math.log(2), size, 0.0
    else:
        theirs = _documents(figures, against)
        for name in ours.keys() | theirs.keys():
            if name not in ours or name not in theirs or ours[name][1] != theirs[name][1]:
                raise UserError(f"{record} and {against}: document {name!r} is not the same in both")
        # The bytes are the same in numerator and denominator and cancel.
        numerator, denominator, offset = nats, np.array([theirs[name][0] for name in names], dtype=np.float64), 1.0
    low, high = bootstrap_ratio(numerator, denominator, seed=seed, level=level, resamples=resamples)
    return [low - offset, high - offset]


def _nats_and_bytes(
    figures: Figures, record: str, where: Mapping[str, Any] | None = None
) -> tuple[list[float], list[float]]:
    rows = figures.table(record, ["nll", "bytes"], where)
    nats, size = ([_number(row[i], f"{record}: {name!r}") for row in rows] for i, name in enumerate(("nll", "bytes")))
    return nats, size


def _documents(figures: Figures, record: str) -> dict[Any, tuple[float, float]]:
    """(nats, bytes) of each document, in the order in which the record first names them."""
    names = [row[0] for row in figures.table(record, ["document", "nll", "bytes"])]
    documents: dict[Any, tuple[float, float]] = {}
    for name, nats, size in zip(names, *_nats_and_bytes(figures, record), strict=True):
        before = documents.get(name, (0.0, 0.0))
        documents[name] = (before[0] + nats, before[1] + size)
    return documents
