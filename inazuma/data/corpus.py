"""Documents out of what people have: text files, JSON lines, Parquet, Arrow and saved Hugging Face datasets.

Everything is streamed, so memory depends on the largest record and never on the corpus. A text of more than
`PIECE_BYTES` (a whole book, a log, one huge file) becomes several documents, cut at line ends, or between characters
where a line is longer than that; joined in order they are the text again, byte for byte.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from inazuma.errors import UserError
from inazuma.files import read_json

PIECE_BYTES = 1 << 20
SNIFF_BYTES = 8 << 10
"""A NUL byte within so many bytes of a file's beginning marks it as binary, as git does it."""

DIGEST_BYTES = 16
_ROWS = 256
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_KINDS = {".jsonl": "json lines", ".ndjson": "json lines", ".parquet": "parquet", ".arrow": "arrow"}
# Inside a folder, these are text even with stray bytes in them; a file of another name must decode to be taken.
# fmt: off
_TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".org", ".html", ".htm", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml",
    ".toml", ".ini", ".cfg", ".log", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".java", ".js", ".ts",
    ".go", ".rs", ".rb", ".php", ".pl", ".sh", ".sql", ".r", ".jl", ".lua", ".swift", ".kt", ".css",
))
# fmt: on


@dataclass(frozen=True)
class Source:
    """A file to read. `kind` is `"text"`, `"json lines"`, `"parquet"` or `"arrow"`; `size` is in bytes."""

    path: Path
    kind: str
    size: int


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    text: str
    bytes: int
    """Length of `text` in UTF-8."""
    digest: bytes
    """`DIGEST_BYTES` of BLAKE2b of the text: equal texts, equal digests, on every machine."""
    source: int
    """Which of the corpus's sources."""
    line: int
    """The line or row it begins at, from 1; 0 where the document is the whole file."""
    position: int
    """How many bytes of its source have been read with it."""


@dataclass(frozen=True)
class Corpus:
    """The files behind the paths a person named, in a fixed order."""

    sources: list[Source]
    skipped: int
    """Files found inside folders that are not text."""

    @property
    def bytes(self) -> int:
        return sum(source.size for source in self.sources)

    def documents(self, text_field: str, counts: Counter[str]) -> Iterator[Document]:
        """Yields the documents that hold text, and adds to `counts` what was met on the way.

        `counts` gets `"read"`, `"empty"` (dropped), `"invalid_utf8_documents"` and `"invalid_utf8_sequences"` (each
        replaced by U+FFFD). Raises `UserError` for a record that cannot be read, with its file and line.
        """
        for index, source in enumerate(self.sources):
            for line, raw, position in _READERS[source.kind](source, text_field):
                counts["read"] += 1
                if not raw:
                    counts["empty"] += 1
                    continue
                text, replaced = _decode(raw)
                if replaced:
                    counts["invalid_utf8_documents"] += 1
                    counts["invalid_utf8_sequences"] += replaced
                    raw = text.encode()
                digest = blake2b(raw, digest_size=DIGEST_BYTES).digest()
                yield Document(text, len(raw), digest, index, line, position)


def find_corpus(paths: Sequence[Path], *, exclude: Path | None = None) -> Corpus:
    """Lists the files that `paths` name or contain, folders in sorted order, without hidden files and `exclude`.

    Raises `UserError` for a path that does not exist, a named file that is binary, and when nothing is left.
    """
    found: list[Source] = []
    skipped = 0
    for path in map(Path, paths):
        if path.is_dir():
            for file in _walk(path, exclude.resolve() if exclude else None):
                if _why_not_text(file, strict=file.suffix.lower() not in _TEXT_SUFFIXES):
                    skipped += 1
                else:
                    found.append(_source(file))
        elif path.is_file():
            if reason := _why_not_text(path, strict=False):
                raise UserError(f"{path}: {reason}; name text, JSON lines, Parquet or Arrow files (text as UTF-8)")
            found.append(_source(path))
        elif path.exists():
            raise UserError(f"{path}: neither a file nor a folder")
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        names = ", ".join(map(str, paths)) or "no path given"
        raise UserError(f"no text to read: {names} ({skipped} files skipped because they are not text)")
    return Corpus(found, skipped)


def _source(path: Path) -> Source:
    return Source(path, _KINDS.get(path.suffix.lower(), "text"), path.stat().st_size)


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    saved = _saved_dataset(folder)
    if saved is not None:
        yield from saved
        return
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink() and entry.resolve() != exclude:
            yield from _walk(entry, exclude)


def _saved_dataset(folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that the `datasets` library wrote; None for any other folder.

    Its own JSON files are not part of the text, and neither are the `cache-*.arrow` files it leaves beside the data.
    """
    if (index := folder / "dataset_dict.json").is_file():
        splits = read_json(index).get("splits", [])
        for split in splits:
            if not (folder / split).is_dir():
                raise UserError(f"{index}: names the split {split!r}, but {folder / split} is missing")
        return [file for split in splits for file in _saved_dataset(folder / split) or []]
    if (state := folder / "state.json").is_file() and "_data_files" in (content := read_json(state)):
        files = [folder / item["filename"] for item in content["_data_files"]]
        for file in files:
            if not file.is_file():
                raise UserError(f"{state}: names {file.name}, which is missing; copy the dataset's folder again")
        return files
    if (folder / "dataset_info.json").is_file():
        return sorted(file for file in folder.glob("*.arrow") if not file.name.startswith("cache-"))
    return None


def _why_not_text(path: Path, *, strict: bool) -> str | None:
    """Why a file is no text, or None; `strict` also wants its beginning to be valid UTF-8."""
    if path.suffix.lower() in _KINDS:
        return None
    try:
        with open(path, "rb") as handle:
            head = handle.read(SNIFF_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if (nul := head.find(b"\0")) >= 0:
        return f"is binary (a NUL byte at offset {nul})"
    try:
        if strict:
            # Not final: the last character may be cut in two.
            codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < SNIFF_BYTES)
    except UnicodeDecodeError:
        return "is not UTF-8"
    return None


def _decode(raw: bytes) -> tuple[str, int]:
    """The text, and how many invalid sequences became U+FFFD in it."""
    try:
        return raw.decode(), 0
    except UnicodeDecodeError:
        text = raw.decode(errors="replace")
        return text, text.count("\ufffd") - raw.count("\ufffd".encode())


def pieces(handle: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Cuts a stream into pieces of at most `PIECE_BYTES`.

    Yields each with the line it begins at, from 1; a stream that needs no cut is one piece, with 0 for its line.
    """
    line, rest, whole = 1, b"", True
    while len(rest := rest + handle.read(PIECE_BYTES + 1 - len(rest))) > PIECE_BYTES:
        whole = False
        cut = rest.rfind(b"\n", 0, PIECE_BYTES) + 1
        if not cut:
            cut = PIECE_BYTES
            while cut > PIECE_BYTES - 3 and rest[cut] & 0xC0 == 0x80:  # inside a character: go back to its first byte
                cut -= 1
        yield line, rest[:cut]
        line += rest.count(b"\n", 0, cut)
        rest = rest[cut:]
    yield 0 if whole else line, rest


# A reader yields (line or row, UTF-8 that may be invalid, bytes of the file read so far) for each document.
_Records = Iterator[tuple[int, bytes, int]]


def _read_text(source: Source, text_field: str) -> _Records:
    position = 0
    with open(source.path, "rb") as handle:
        for line, piece in pieces(handle):
            position += len(piece)
            yield line, piece, position


def _read_json_lines(source: Source, text_field: str) -> _Records:
    position = 0
    with open(source.path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            position += len(line)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            where = f"{source.path}:{number}"
            # Bytes that are no UTF-8 pass through the parser as lone surrogates, and are counted in the text alone.
            try:
                record = json.loads(line.decode(errors="surrogateescape"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: malformed JSON ({error}); a line must hold one JSON object") from None
            if not isinstance(record, dict):
                raise UserError(f"{where}: expected a JSON object, found {type(record).__name__}")
            if text_field not in record:
                known = ", ".join(list(record)[:10]) or "none"
                raise UserError(f"{where}: no field {text_field!r} (fields: {known}); pass --text-field NAME")
            text = record[text_field]
            if text is not None and not isinstance(text, str):
                raise UserError(f"{where}: field {text_field!r} is {type(text).__name__}, not a string")
            for piece in _record_pieces(_encode(text or "")):
                yield number, piece, position


def _encode(text: str) -> bytes:
    """A JSON string as UTF-8, each lone surrogate as one invalid byte (the bytes of surrogates occur in no UTF-8)."""
    return _SURROGATE.sub(b"\xff", text.encode(errors="surrogatepass"))


def _read_parquet(source: Source, text_field: str) -> _Records:
    try:
        # A buffered stream reads a column page by page; without it a whole row group's column is held.
        with pq.ParquetFile(source.path, buffer_size=1 << 20, pre_buffer=False) as file:
            _check_column(source, file.schema_arrow, text_field)
            batches = file.iter_batches(batch_size=_ROWS, columns=[text_field], use_threads=False)
            yield from _read_batches(source, batches, text_field, rows=file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from None


def _read_arrow(source: Source, text_field: str) -> _Records:
    try:
        with open(source.path, "rb") as handle:
            is_file = handle.read(6) == b"ARROW1"
        # Not memory-mapped: mapped pages of a large file would count as this process's memory.
        with pa.OSFile(os.fspath(source.path)) as handle:
            reader = pa.ipc.open_file(handle) if is_file else pa.ipc.open_stream(handle)
            _check_column(source, reader.schema, text_field)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            yield from _read_batches(source, batches, text_field, tell=handle.tell)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from None


def _read_batches(source: Source, batches, text_field: str, *, rows: int = 0, tell=None) -> _Records:
    row = 0
    for batch in batches:
        column = batch.column(text_field)
        # As bytes: Arrow does not check that a string is UTF-8.
        for raw in column.cast(pa.large_binary()).to_pylist():
            row += 1
            position = tell() if tell else source.size * row // rows
            for piece in _record_pieces(raw or b""):
                yield row, piece, position


def _record_pieces(raw: bytes) -> Iterator[bytes]:
    return (piece for _, piece in pieces(io.BytesIO(raw)))


def _check_column(source: Source, schema: pa.Schema, text_field: str) -> None:
    if text_field not in schema.names:
        known = ", ".join(schema.names[:20]) or "none"
        raise UserError(f"{source.path}: no column {text_field!r} (columns: {known}); pass --text-field NAME")
    kind = schema.field(text_field).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    if value not in texts:
        raise UserError(f"{source.path}: column {text_field!r} is {kind}, not text; pass --text-field NAME")


def _damaged(source: Source, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{source.path}: not a whole {source.kind.capitalize()} file ({reason}); copy or write it again")


_READERS = {"text": _read_text, "json lines": _read_json_lines, "parquet": _read_parquet, "arrow": _read_arrow}
