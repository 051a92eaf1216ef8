"""Labelled examples out of a file, streamed: memory depends on how many rows are kept, never on the file's size."""

from __future__ import annotations

import csv
import difflib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inazuma.errors import UserError
from inazuma.rightsize.reservoir import Reservoir
from inazuma.rightsize.task import Task, field_kind

TEXT_NAMES = ("text", "sentence", "content", "body", "message", "description", "review", "document", "input")
LABEL_NAMES = ("label", "category", "class", "target", "section", "topic", "output", "answer", "y")
FEWEST = 50
"""Usable rows below which nothing can be split and tested."""
LONGEST_FIELD = 8 << 20
"""Characters; a longer CSV field is a quote that was never closed."""
LONGEST_LINE = 64 << 20
"""Bytes; a longer line is no row of a table."""
LONGEST_TEXT = 10_000
"""Characters of a text that are kept: of a longer one its middle is left out, for every rung."""
MOST_CHARACTERS = 20_000_000
"""Of all rows kept together; memory stays bounded where rows are long."""
MOST_LABELS, LONGEST_LABEL = 10_000, 1000
_BATCH_BYTES = 8 << 20


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
    kept: int = 0
    """Of the usable rows, those that the memory is bounded to."""
    shortened: int = 0
    """Texts whose middle was left out."""
    targets: Counter[str] = field(default_factory=Counter)
    """How often each label occurs, for classification and multi-label."""


def read_examples(task: Task) -> tuple[list[Example], Counts]:
    """The examples in `task.data`, at most `task.max_rows` and 20 million characters of them: a random sample that
    depends on the seed and the rows alone.

    Raises:
        UserError: a file that cannot be read, a column that is missing, labels that differ only in case, one class,
            too few rows; the message names line and field.
    """
    counts = Counts()
    kept: Reservoir[Example] = Reservoir(task.seed, task.max_rows, MOST_CHARACTERS)
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
        labels = _labels(task, target)
        if any(len(label) > LONGEST_LABEL for label in labels):
            raise UserError(f"{where}: a label of over {LONGEST_LABEL} characters; free text is kind: generation")
        counts.targets.update(labels)
        if len(counts.targets) > MOST_LABELS:
            raise UserError(f"{where}: more than {MOST_LABELS} different labels so far; free text is kind: generation")
        short = shortened(text)
        counts.shortened += short != text
        extra = {name: _value(record, columns[name], where) for name in ("group", "time", "split")}
        size = len(short) + len(target) + sum(len(value) for value in extra.values() if value is not None)
        kept.add(number, size, Example(number, short, target, **extra))
    examples = kept.items()
    counts.kept = len(examples)
    _judge(task, examples, counts)
    return examples, counts


def _labels(task: Task, target: str) -> list[str]:
    """The labels in a canonical answer; none where answers are free."""
    if task.kind == "classification":
        return [target]
    return json.loads(target) if task.kind == "multi-label" else []


def shortened(text: str, most: int = LONGEST_TEXT) -> str:
    """The text, or of one of over `most` characters its beginning and its end."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def _judge(task: Task, examples: list[Example], counts: Counts) -> None:
    usable = counts.rows - counts.empty - counts.unlabelled
    if usable < FEWEST:
        raise UserError(
            f"{task.data}: {usable} usable rows (of {counts.rows}, {counts.empty} without text, {counts.unlabelled} "
            f"without an answer) decide nothing; label at least {FEWEST}, better some hundreds"
        )
    if len(examples) < FEWEST:
        raise UserError(
            f"{task.data}: rows so long that only {len(examples)} of {usable} are within the {MOST_CHARACTERS:,} "
            "characters that are kept; shorten answers and columns"
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
        for number, line in enumerate(iter(lambda: handle.readline(LONGEST_LINE), b""), start=1):
            if len(line) == LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of over {LONGEST_LINE >> 20} MB is no row of a table")
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
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            width = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
            rows = max(1, min(256, int(_BATCH_BYTES / max(width, 1))))
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a whole Parquet file ({reason})") from None
