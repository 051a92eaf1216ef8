"""What people hand in: formats, columns, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inazuma.cli import main
from inazuma.errors import UserError
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task
from tests.rightsize.planted import keyword, write


def test_the_three_formats_give_the_same_examples(tmp_path):
    rows = keyword(60)
    write(tmp_path / "a.csv", rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = {
        suffix: [(e.text, e.target) for e in read_examples(Task(data=tmp_path / f"a.{suffix}"))[0]]
        for suffix in ("csv", "jsonl", "parquet")
    }
    assert found["csv"] == found["jsonl"] == found["parquet"] == [(row["text"], row["label"]) for row in rows]


def one_class(rows):
    return [row | {"label": "praise"} for row in rows]


def case(rows):
    return [row | {"label": row["label"].upper() if i == 7 else row["label"]} for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_class, "every row is labelled 'praise'"),
        (lambda rows: rows[:10], "10 usable rows"),
        (case, "differ only in case"),
        (lambda rows: [{"words": row["text"], "label": row["label"]} for row in rows], "--set text=COLUMN"),
        (lambda rows: [row | {"label": f"n{i}"} for i, row in enumerate(rows)], "are no classes"),
        (lambda rows: [row | {"text": ""} for row in rows[:70]] + rows[70:], "texts are empty"),
    ],
)
def test_wrong_data_is_one_clear_line(tmp_path, capsys, change, message):
    path = write(tmp_path / "a.csv", change(keyword(120)))
    assert main(["rightsize", str(path), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label\n日本,a\n".encode() + "電気,b\n".encode("cp932"),
            "a.csv:3: not UTF-8 (byte 0x93); this line could be cp932",
        ),
        (b'text,label\nfine,a\n"never closed,b\n' + b"x" * (9 << 20), "is a quote not closed?"),
        (b"text,label\na,b,c\n", "a.csv:2: 3 fields where the header names 2"),
        ("text,label\na,b\n".encode("utf-16"), "not UTF-8"),
        (b"", "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_read_names_its_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_examples(Task(data=tmp_path / "a.csv"))
    assert message in str(error.value)


def test_a_missing_column_names_the_nearest(tmp_path):
    path = write(tmp_path / "a.csv", keyword(60))
    with pytest.raises(UserError, match=r"no column 'lable'.*did you mean 'label'"):
        read_examples(Task(data=path, label="lable"))


def test_empty_texts_are_counted_and_left_out(tmp_path):
    rows = [row | {"text": "  "} if i % 10 == 0 else row for i, row in enumerate(keyword(200))]
    examples, counts = read_examples(Task(data=write(tmp_path / "a.csv", rows)))
    assert counts.empty == 20 and len(examples) == 180


def test_case_can_be_folded(tmp_path):
    _, counts = read_examples(Task(data=write(tmp_path / "a.csv", case(keyword(120))), fold_case=True))
    assert sorted(counts.targets) == ["complaint", "praise"]


MEASURED = """
import sys
from pathlib import Path
from inazuma.rightsize.measure import peak_memory
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task
examples, counts = read_examples(Task(data=Path(sys.argv[1]), max_rows=500))
print(counts.rows, len(examples), peak_memory())
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """60 MB against 3 MB: the rows kept are the same number, and so is the memory."""
    peaks = {}
    for name, rows in (("small", 3_000), ("large", 60_000)):
        with open(tmp_path / f"{name}.csv", "w") as handle:
            handle.write("text,label\n")
            for i in range(rows):
                handle.write(f"{i} {'x' * 1000},{'ab'[i % 2]}\n")
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path / f"{name}.csv")], capture_output=True, text=True, check=True
        )
        found, kept, peaks[name] = map(float, done.stdout.split())
        assert (found, kept) == (rows, 500)
    assert peaks["large"] - peaks["small"] < 8
