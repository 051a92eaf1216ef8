"""Labelled examples out of a file, streamed: memory depends on how many rows are kept, never on the file's size."""

from __future__ import annotations

import csv
import difflib
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inazuma.errors import UserError
from inazuma.rightsize.task import Task, field_kind

TEXT_NAMES = ("text", "sentence", "content", "body", "message", "description", "review", "document", "input")
LABEL_NAMES = ("label", "category", "class", "target", "section", "topic", "output", "answer", "y")
FEWEST = 50
"""Usable rows below which nothing can be split and tested."""
LONGEST_FIELD = 8 << 20
"""Characters; a longer CSV field is a quote that was never closed."""
MOST_LABELS = 10_000
_ROWS = 256


@dataclass(frozen=True)
class Example:
    """One labelled text. `row` is its line (CSV, JSON lines) or row (Parquet) in the file, from 1."""

    row: int
    text: str
    target: str
    """A label; for several labels and for extraction the canonical JSON; for generation the text."""
    group: str | None = None
    time: str | None = None
    split: str | None = None


@dataclass
class Counts:
    """What a file held."""

    rows: int = 0
    empty: int = 0
    """Rows without a text, which were left out."""
    unlabelled: int = 0
    """Rows without an answer, which were left out."""
    targets: Counter[str] = field(default_factory=Counter)
    """How often each label occurs, for classification and multi-label."""


def read_examples(task: Task) -> tuple[list[Example], Counts]:
    """The examples in `task.data`, at most `task.max_rows` of them: a sample that depends on the seed alone.

    Raises:
        UserError: a file that cannot be read, a column that is missing, labels that differ only in case, one class,
            too few rows; the message names line and field.
    """
    counts = Counts()
    kept: list[tuple[bytes, int, Example]] = []
    columns: dict[str, str | None] = {}
    for number, record in records(task.data):
        if not columns:
            columns = _columns(task, list(record))
        counts.rows += 1
        where = f"{task.data}:{number}"
        text = _value(record, columns["text"], where)
        if text is None or not text.strip():
            counts.empty += 1
            continue
        raw = record.get(columns["label"])
        if raw is None or (isinstance(raw, str) and not raw.strip()):
            counts.unlabelled += 1
            continue
        target = canonical(task, raw, where)
        if task.kind == "classification":
            counts.targets[target] += 1
        elif task.kind == "multi-label":
            counts.targets.update(json.loads(target))
        if len(counts.targets) > MOST_LABELS:
            raise UserError(f"{where}: more than {MOST_LABELS} different labels so far; free text is kind: generation")
        extra = {name: _value(record, columns[name], where) for name in ("group", "time", "split")}
        example = Example(number, text, target, **extra)
        key = blake2b(f"{task.seed}:{number}".encode(), digest_size=16).digest()
        # The heap's root is the largest key, the first to go.
        entry = (bytes(255 - byte for byte in key), number, example)
        if len(kept) < task.max_rows:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    examples = sorted((entry[2] for entry in kept), key=lambda example: example.row)
    _judge(task, examples, counts)
    return examples, counts


def _judge(task: Task, examples: list[Example], counts: Counts) -> None:
    usable = counts.rows - counts.empty - counts.unlabelled
    if usable < FEWEST:
        raise UserError(
            f"{task.data}: {usable} usable rows (of {counts.rows}, {counts.empty} without text, {counts.unlabelled} "
            f"without an answer) decide nothing; label at least {FEWEST}, better some hundreds"
        )
    if counts.empty > counts.rows / 2:
        raise UserError(f"{task.data}: {counts.empty} of {counts.rows} texts are empty; is this the text's column?")
    folded: dict[str, str] = {}
    for label in counts.targets:
        other = folded.setdefault(label.casefold().strip(), label)
        if other != label:
            raise UserError(
                f"{task.data}: the labels {other!r} and {label!r} differ only in case or spaces; make them one, or set "
                "fold_case: true"
            )
    if task.kind == "classification":
        if len(counts.targets) < 2:
            raise UserError(
                f"{task.data}: every row is labelled {next(iter(counts.targets))!r}; two classes are needed"
            )
        if len(counts.targets) > len(examples) / 2:
            raise UserError(
                f"{task.data}: {len(counts.targets)} different labels in {usable} rows are no classes; free text is "
                "kind: generation"
            )


def canonical(task: Task, raw: Any, where: str) -> str:
    """An answer as it is compared: the label, sorted JSON, or the text itself.

    Raises:
        UserError: it is not of the task's kind; the message begins with `where`.
    """
    if task.kind == "classification":
        if not isinstance(raw, str | int | float):
            raise UserError(f"{where}: the label is {type(raw).__name__}, not text; several are kind: multi-label")
        label = str(raw).strip()
        return label.casefold() if task.fold_case else label
    if task.kind == "generation":
        return str(raw).strip()
    value = raw
    if isinstance(raw, str):
        try:
            value = json.loads(raw)
        except ValueError:
            if task.kind == "extraction":
                raise UserError(f"{where}: the answer is not JSON: {raw[:60]!r}") from None
            value = [part.strip() for part in raw.split(";")]
    if task.kind == "multi-label":
        if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
            raise UserError(f"{where}: expected a list of labels, found {str(raw)[:60]!r}")
        labels = {label.casefold() if task.fold_case else label for label in value if label}
        return json.dumps(sorted(labels), ensure_ascii=False)
    return canonical_object(task, value, where)


def canonical_object(task: Task, value: Any, where: str) -> str:
    """An extracted object with exactly the schema's properties, in its order; lists sorted, without repeats."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {str(value)[:60]!r}")
    properties = task.schema["properties"]
    for name in value:
        if name not in properties:
            raise UserError(f"{where}: {name!r} is not in the schema, which has {', '.join(properties)}")
    result: dict[str, Any] = {}
    for name, kind in properties.items():
        here = value.get(name)
        if field_kind(name, kind) == "spans":
            here = [] if here is None else here
            if not isinstance(here, list) or not all(isinstance(item, str) for item in here):
                raise UserError(f"{where}: {name}: expected a list of texts, found {str(here)[:60]!r}")
            result[name] = sorted(set(here))
        elif here is not None and not isinstance(here, str):
            raise UserError(f"{where}: {name}: expected a text, found {str(here)[:60]!r}")
        else:
            result[name] = here or ""
    return json.dumps(result, ensure_ascii=False)


# --------------------------------------------------------------------------------------------------------- columns


def _columns(task: Task, names: list[str]) -> dict[str, str | None]:
    """Which column is what."""
    chosen = {name: getattr(task, name) for name in ("text", "label", "group", "time", "split")}
    for name, usual in (("text", TEXT_NAMES), ("label", LABEL_NAMES)):
        if chosen[name] is None:
            chosen[name] = next((one for one in usual if one in names), None)
            if chosen[name] is None:
                raise UserError(
                    f"{task.data}: no column is called {', '.join(usual[:4])} or the like; its columns are "
                    f"{', '.join(names[:20])}; say --set {name}=COLUMN"
                )
    for name, column in chosen.items():
        if column is not None and column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {', '.join(names[:20])}"
            raise UserError(f"{task.data}: no column {column!r} ({name}); {hint}")
    return chosen


def _value(record: dict[str, Any], column: str | None, where: str) -> str | None:
    if column is None or record.get(column) is None:
        return None
    value = record[column]
    if isinstance(value, dict | list):
        raise UserError(f"{where}: {column!r} is {type(value).__name__}, not text")
    return str(value)


# --------------------------------------------------------------------------------------------------------- formats


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row, its values by column) of a .csv, .tsv, .jsonl or .parquet file, one at a time.

    Raises:
        UserError: the file is missing, of another kind, not UTF-8 or malformed; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _delimited(path, "\t" if suffix == ".tsv" else ",")
    elif suffix in (".jsonl", ".ndjson"):
        yield from _json_lines(path)
    elif suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise UserError(f"{path}: expected a .csv, .tsv, .jsonl or .parquet file")


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x}); {_encoding(line)}"
                ) from None
            if "\0" in text:
                raise UserError(f"{path}:{number}: holds a NUL byte; it is no text file, or UTF-16: write it as UTF-8")
            yield text


def _encoding(line: bytes) -> str:
    for name in ("cp932", "euc_jp", "cp1252"):
        try:
            line.decode(name)
        except UnicodeDecodeError:
            continue
        return f"this line could be {name}: if the whole file is, iconv -f {name} -t utf-8 converts it"
    return "convert the file to UTF-8"


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_lines(path), delimiter=delimiter)
    names: list[str] | None = None
    line = 0
    try:
        for row in reader:
            line = reader.line_num
            if not row:
                continue
            if names is None:
                names = [name.strip() for name in row]
                if len(set(names)) < len(names):
                    raise UserError(f"{path}:1: two columns have the same name")
                continue
            if len(row) != len(names):
                raise UserError(f"{path}:{line}: {len(row)} fields where the header names {len(names)}")
            yield line, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{line + 1}: not CSV ({error}); is a quote not closed?") from None
    if names is None:
        raise UserError(f"{path}: the file is empty")


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield number, record


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    row = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_ROWS, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a whole Parquet file ({reason})") from None
