from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inazuma.data import corpus
from inazuma.data.corpus import find_corpus
from inazuma.errors import UserError

TEXTS = ["one", "two\r\nlines\n", "稲妻 🌩 \x01 \t", "", "é" * 50]


def read(*paths: Path, text_field: str = "text") -> tuple[list[str], list[str], Counter[str]]:
    """The texts, their places, and the counts."""
    found, counts = find_corpus(paths), Counter()
    documents = list(found.documents(text_field, counts))
    assert all(document.bytes == len(document.text.encode()) for document in documents)
    places = [f"{found.sources[d.source].path.name}:{d.line}" for d in documents]
    return [document.text for document in documents], places, counts


def write_arrow_stream(path: Path, texts: list[str]) -> None:
    table = pa.table({"id": list(range(len(texts))), "text": texts})
    with pa.OSFile(str(path), "wb") as handle, pa.ipc.new_stream(handle, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_file(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": texts})
    with pa.OSFile(str(path), "wb") as handle, pa.ipc.new_file(handle, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_json_lines(path: Path, texts: list[str]) -> None:
    # A byte order mark, an empty line and a null, as they occur.
    lines = [json.dumps({"text": text or None}, ensure_ascii=bool(n % 2)) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), path, row_group_size=2)


def write_dictionary_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_json_lines),
        ("a.parquet", write_parquet),
        ("b.parquet", write_dictionary_parquet),
        ("a.arrow", write_arrow_stream),
        ("b.arrow", write_arrow_file),
    ],
)
def test_every_container_gives_the_same_documents(tmp_path, name, write):
    write(tmp_path / name, TEXTS)
    texts, places, counts = read(tmp_path)
    assert texts == [text for text in TEXTS if text]
    assert places == [f"{name}:{row}" for row in (1, 2, 3, 5)]
    assert counts == {"read": 5, "empty": 1}


def test_a_text_file_is_one_document_with_its_bytes_unchanged(tmp_path):
    (tmp_path / "a.txt").write_bytes("﻿ a\r\nb\r\r\n\n稲妻\x0c".encode())
    (tmp_path / "empty.py").write_bytes(b"")
    texts, places, counts = read(tmp_path)
    assert texts == ["﻿ a\r\nb\r\r\n\n稲妻\x0c"] and places == ["a.txt:0"]
    assert counts == {"read": 2, "empty": 1}


def test_a_large_text_is_cut_at_line_ends_and_loses_nothing(tmp_path):
    text = "".join(f"{n} 稲妻\n" for n in range(200_000))
    (tmp_path / "big.txt").write_text(text, encoding="utf-8")
    texts, places, _ = read(tmp_path)
    assert "".join(texts) == text and len(texts) == 3
    assert all(piece.endswith("\n") and len(piece.encode()) <= corpus.PIECE_BYTES for piece in texts)
    lines = [int(piece.split()[0]) + 1 for piece in texts]
    assert places == [f"big.txt:{line}" for line in lines]


@given(st.lists(st.sampled_from(["a", "é", "稲", "🌩", "\n", "bcdef"]), max_size=40).map("".join))
def test_pieces_join_to_the_text_and_never_cut_a_character(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", 8)
        pieces = [piece for _, piece in corpus.pieces(io.BytesIO(text.encode()))]
    assert "".join(piece.decode() for piece in pieces) == text
    assert all(len(piece) <= 8 for piece in pieces)
    # Each piece but the last ends a line, or a line goes on through all of it.
    assert all(piece.endswith(b"\n") or b"\n" not in piece for piece in pieces[:-1])


@given(st.binary(max_size=60))
def test_pieces_of_any_bytes_join_to_them(raw):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", 8)
        assert b"".join(piece for _, piece in corpus.pieces(io.BytesIO(raw))) == raw


def test_invalid_utf8_is_replaced_and_counted_everywhere(tmp_path):
    (tmp_path / "a.txt").write_bytes("valid � ".encode() + b"\xff bad \xe7\xa8")
    lines = [b'{"text": "one \xff"}', b'{"other": "\xff", "text": "fine"}', b'{"text": "\\ud83d"}']
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(lines))
    raw = pa.array([b"ok", b"\xff\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "c.parquet")
    texts, _, counts = read(tmp_path)
    assert texts == ["valid � � bad �", "one �", "fine", "�", "ok", "��"]
    assert counts == {"read": 6, "invalid_utf8_documents": 4, "invalid_utf8_sequences": 6}


def test_a_folder_is_walked_in_order_without_what_is_no_text(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.py", "Z", ".git/config", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "binary.txt").write_bytes(b"text\0")
    (tmp_path / "latin.xyz").write_bytes("é".encode("latin-1"))
    (tmp_path / "cut.xyz").write_bytes(b"a" * (corpus.SNIFF_BYTES - 1) + "é".encode())  # cut where the sniffing ends
    _, places, _ = read(tmp_path)
    assert [place[:-2] for place in places] == ["Z", "a.py", "10.txt", "2.txt", "cut.xyz"]
    assert find_corpus([tmp_path]).skipped == 2
    assert [source.path.name for source in find_corpus([tmp_path], exclude=tmp_path / "b").sources][:2] == ["Z", "a.py"]
    assert not any("b" in source.path.parent.name for source in find_corpus([tmp_path], exclude=tmp_path / "b").sources)


def test_a_saved_dataset_is_its_arrow_files_alone(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        write_arrow_stream(folder / "data-00000-of-00001.arrow", [f"{split} 1", f"{split} 2"])
        write_arrow_stream(folder / "cache-0123.arrow", ["left over"])
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    cached = tmp_path / "cached"
    cached.mkdir()
    write_arrow_stream(cached / "wiki-train.arrow", ["from the cache"])
    write_arrow_stream(cached / "cache-0123.arrow", ["left over"])
    (cached / "dataset_info.json").write_text("{}")
    assert read(tmp_path / "saved")[0] == ["train 1", "train 2", "test 1", "test 2"]
    assert read(tmp_path)[0] == ["from the cache", "train 1", "train 2", "test 1", "test 2"]
    (tmp_path / "saved" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"state\.json: names data-00000-of-00001\.arrow, which is missing"):
        read(tmp_path / "saved")


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


WHOLE = parquet_bytes(pa.table({"text": ["a" * 100] * 100}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"a\.jsonl:2: no field 'text' \(fields: body\)"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a\.jsonl:3: malformed JSON"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: expected a JSON object, found list"),
        ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl:1: field 'text' is int, not a string"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: malformed JSON"),
        ("a.parquet", WHOLE[:-20], r"a\.parquet: not a whole Parquet file"),
        ("a.parquet", WHOLE[: len(WHOLE) // 2], r"a\.parquet: not a whole Parquet file"),
        ("a.parquet", b"", r"a\.parquet: not a whole Parquet file"),
        ("a.parquet", parquet_bytes(pa.table({"body": ["a"]})), r"a\.parquet: no column 'text' \(columns: body\)"),
        ("a.parquet", parquet_bytes(pa.table({"text": [1]})), r"a\.parquet: column 'text' is int64, not text"),
        ("a.arrow", b"ARROW1 nothing", r"a\.arrow: not a whole Arrow file"),
        ("a.txt", b"abc\0", r"a\.txt: is binary \(a NUL byte at offset 3\)"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_truncated_arrow_file_is_an_error(tmp_path):
    write_arrow_stream(tmp_path / "a.arrow", ["a" * 1000] * 4)
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.arrow: not a whole Arrow file"):
        read(tmp_path)


def test_missing_and_empty_paths_are_errors(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        find_corpus([tmp_path / "nowhere"])
    (tmp_path / "image.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"no text to read: .* \(1 files skipped"):
        find_corpus([tmp_path])
