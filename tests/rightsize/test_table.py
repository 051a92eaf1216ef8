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
from inazuma.rightsize.checks import findings
from inazuma.rightsize.splits import Splits
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


def test_of_a_very_long_text_beginning_and_end_are_kept_and_it_is_said(tmp_path):
    rows = keyword(60)
    rows[5] = rows[5] | {"text": "begin " + "x" * 50_000 + " end"}
    task = Task(data=write(tmp_path / "a.csv", rows))
    examples, counts = read_examples(task)
    assert counts.shortened == 1
    assert examples[5].text.startswith("begin x") and examples[5].text.endswith("x end")
    assert len(examples[5].text) < 10_010
    said = findings(task, counts, Splits({"train": examples}))
    assert any(one.message.startswith("1 texts have over 10,000 characters") for one in said)


def test_rows_beyond_the_room_are_a_sample_and_it_is_said(tmp_path):
    with open(tmp_path / "a.csv", "w") as handle:
        handle.write("text,label\n")
        for i in range(3000):
            handle.write(f"{i} {'x' * 9990},{'ab'[i % 2]}\n")
    task = Task(data=tmp_path / "a.csv")
    examples, counts = read_examples(task)
    assert sum(len(e.text) + len(e.target) for e in examples) <= 20_000_000 < 3000 * 9990
    assert 1990 < len(examples) <= 2002 and counts.rows == 3000
    # A random sample: of the first half of the file, and of the second.
    assert abs(sum(e.row <= 1501 for e in examples) - 1000) < 120
    said = findings(task, counts, Splits({"train": examples[:20]}))
    assert any(f"{len(examples)} of 3000 usable rows were kept (20,000,000 characters" in one.message for one in said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nfine," + "a" * 1001 + "\n", "a.csv:2: a label of over 1000 characters"),
        ("text,label\n" + "x" * (65 << 20), "a.csv:2: a line of over 64 MB is no row"),
    ],
)
def test_what_would_take_memory_without_end_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError) as error:
        read_examples(Task(data=tmp_path / "a.csv"))
    assert message in str(error.value)


MEASURED = """
import sys
from pathlib import Path
from inazuma.rightsize.measure import peak_memory
from inazuma.rightsize.splits import make_splits
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task
task = Task(data=Path(sys.argv[1]), max_rows=500)
examples, counts = read_examples(task)
make_splits(task, examples)
print(counts.rows, len(examples), peak_memory())
"""


@pytest.mark.parametrize(
    ("kind", "length", "small", "large"),
    [("csv", 1000, 3_000, 60_000), ("csv", 1_000_000, 60, 120), ("parquet", 1_000_000, 60, 120)],
    ids=["many short rows", "few long rows", "few long rows in Parquet"],
)
def test_memory_does_not_grow_with_the_file(tmp_path, kind, length, small, large):
    """60 to 120 MB against a part of that. 2 GB: benchmarks/rightsize_memory.py."""
    peaks = {}
    for name, rows in (("small", small), ("large", large)):
        path = tmp_path / f"{name}.{kind}"
        lines = ((f"{i} {'x' * length}", "ab"[i % 2]) for i in range(rows))
        if kind == "csv":
            with open(path, "w") as handle:
                handle.write("text,label\n")
                handle.writelines(f"{text},{label}\n" for text, label in lines)
        else:
            with pq.ParquetWriter(path, pa.schema([("text", "string"), ("label", "string")])) as writer:
                for text, label in lines:
                    writer.write_table(pa.table({"text": [text], "label": [label]}))
        done = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True)
        found, kept, peaks[name] = map(float, done.stdout.split())
        assert (found, kept) == (rows, min(500, rows))
        path.unlink()
    assert peaks["large"] - peaks["small"] < 8
