"""A prepared dataset on disk: written once, then read through memory maps.

A split is one stream of token ids in which each document is `<|endoftext|> t1 ... tn`. The stream is cut into shard
files of equal length; beside it lie the documents' columns. All are raw little-endian arrays whose type, length and
SHA-256 are in `manifest.json`:

    train.tokens-00000.bin ...   uint16, or uint32 above 65,536 ids
    train.document_start.bin     int64 [documents + 1], where each document begins in the stream; last, its length
    train.document_bytes.bin     int64 [documents], the text's length in UTF-8
    train.document_source.bin    int32 [documents], which entry of sources.json it came from
    train.document_line.bin      int64 [documents], which line or row of it; 0 for a whole file
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from inazuma.data.corpus import Document
from inazuma.errors import UserError
from inazuma.files import read_json, sha256

FORMAT = "inazuma dataset"
VERSION = 1
SPLITS = ("train", "validation")
_COLUMNS = {"document_start": "<i8", "document_bytes": "<i8", "document_source": "<i4", "document_line": "<i8"}


class Dataset:
    """A folder that `inazuma data build` wrote."""

    path: Path
    manifest: dict[str, Any]
    fingerprint: str
    """SHA-256 over the hashes of the tokenizer and of every shard: equal exactly when training would read the same."""
    tokenizer_path: Path
    vocab_size: int
    end_of_text: int
    """Token id that begins every document."""
    train: Split
    validation: Split

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.fingerprint = fingerprint(manifest)
        self.tokenizer_path = path / "tokenizer.json"
        self.vocab_size = manifest["tokenizer"]["vocab_size"]
        self.end_of_text = manifest["tokenizer"]["end_of_text"]
        self.train, self.validation = (Split(path, name, manifest) for name in SPLITS)

    @classmethod
    def open(cls, path: Path, *, verify: bool = False) -> Dataset:
        """Opens a dataset and checks that all its files are there with their sizes; `verify` also checks their hashes.

        Raises `UserError` that names the file that is missing, truncated or (with `verify`) changed.
        """
        path = Path(path)
        where = path / "manifest.json"
        if not where.is_file():
            raise UserError(f"{path}: not a prepared dataset (no manifest.json); make one with `inazuma data build`")
        manifest = read_json(where)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{where}: not the manifest of a prepared dataset")
        if manifest.get("version") != VERSION:
            raise UserError(
                f"{where}: version {manifest.get('version')} of the format, this program reads {VERSION}; "
                f"build it again with `inazuma data build`"
            )
        try:
            _check_files(path, manifest["files"], verify=verify)
            dataset = cls(path, manifest)
            sound = dataset.fingerprint == manifest["fingerprint"]
        except UserError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: damaged ({type(error).__name__}: {error}); {_REMEDY}") from None
        if not sound:
            raise UserError(f"{where}: damaged (its hashes do not give its fingerprint); {_REMEDY}")
        return dataset


class Split:
    """One stream of documents. Arrays are memory maps: open many at no cost."""

    tokens: int
    documents: int
    document_start: np.ndarray
    """int64 `[documents + 1]`: the stream's offset of each document's leading end-of-text token; last, `tokens`."""
    document_bytes: np.ndarray
    """int64 `[documents]`: UTF-8 bytes of each document's text."""

    def __init__(self, folder: Path, name: str, manifest: dict[str, Any]) -> None:
        facts = manifest["splits"][name]
        self.tokens = facts["tokens"]
        self.documents = facts["documents"]
        self.end_of_text = manifest["tokenizer"]["end_of_text"]
        self._vocab_size = manifest["tokenizer"]["vocab_size"]
        self._folder = folder
        self._shard_tokens = manifest["shard_tokens"]
        self._paths = [folder / shard for shard in facts["shards"]]
        self._shards = [np.memmap(path, dtype=manifest["dtype"], mode="r") for path in self._paths]
        columns = {key: np.memmap(folder / f"{name}.{key}.bin", dtype=kind, mode="r") for key, kind in _COLUMNS.items()}
        self.document_start = columns["document_start"]
        self.document_bytes = columns["document_bytes"]
        self._document_source = columns["document_source"]
        self._document_line = columns["document_line"]
        lengths = [len(column) - (key == "document_start") for key, column in columns.items()]
        if set(lengths) != {self.documents} or sum(map(len, self._shards)) != self.tokens:
            raise ValueError(f"the lengths of the split {name!r} contradict its files")
        if self.document_start[0] != 0 or self.document_start[-1] != self.tokens:
            raise UserError(f"{folder / f'{name}.document_start.bin'}: damaged; {_REMEDY}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Token ids `start` to `stop - 1` of the stream, int64 `[stop - start]`.

        Raises `IndexError` outside the stream, `UserError` where a shard holds ids that the tokenizer does not have.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.tokens}")
        ids = np.empty(stop - start, dtype=np.int64)
        filled = 0
        while filled < len(ids):
            shard, offset = divmod(start + filled, self._shard_tokens)
            part = self._shards[shard][offset : offset + len(ids) - filled]
            if (largest := int(part.max())) >= self._vocab_size:
                raise UserError(
                    f"{self._paths[shard]}: holds token id {largest}, the vocabulary has {self._vocab_size}; {_REMEDY}"
                )
            ids[filled : filled + len(part)] = part
            filled += len(part)
        return ids

    def source(self, document: int) -> str:
        """Where a document came from: `"path/to/file.py"`, or `"file.jsonl:123"` for a line or row (from 1)."""
        path = self._source_names[self._document_source[document]]
        line = int(self._document_line[document])
        return f"{path}:{line}" if line else path

    @cached_property
    def _source_names(self) -> list[str]:
        return read_json(self._folder / "sources.json")


class SplitWriter:
    """Writes one split's files into `folder` as its documents come; use it as a context manager."""

    def __init__(self, folder: Path, name: str, dtype: str, shard_tokens: int) -> None:
        self.documents = 0
        self.tokens = 0
        self.bytes = 0
        self._folder, self._name = folder, name
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._shards: list[_HashedFile] = []
        self._columns = {key: _HashedFile(folder / f"{name}.{key}.bin") for key in _COLUMNS}

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._append("document_start", [self.tokens])
        for file in (*self._columns.values(), *self._shards):
            file.close()

    def add(self, documents: Sequence[Document], encoded: Sequence[Sequence[int]], end_of_text: int) -> None:
        """Appends documents, given with the ids of their texts (without the marker, which is `end_of_text`)."""
        lengths = np.array([1 + len(ids) for ids in encoded])
        begins = np.cumsum(lengths) - lengths
        ids = np.concatenate([np.array([end_of_text, *ids], dtype=self._dtype) for ids in encoded])
        self._append("document_start", self.tokens + begins)
        self._append("document_bytes", [document.bytes for document in documents])
        self._append("document_source", [document.source for document in documents])
        self._append("document_line", [document.line for document in documents])
        self.documents += len(documents)
        self.bytes += sum(document.bytes for document in documents)
        while len(ids):
            room = self._shard_tokens - self.tokens % self._shard_tokens
            if room == self._shard_tokens:
                self._shards.append(_HashedFile(self._folder / f"{self._name}.tokens-{len(self._shards):05}.bin"))
            part, ids = ids[:room], ids[room:]
            self._shards[-1].write(part)
            self.tokens += len(part)

    def facts(self) -> dict[str, Any]:
        """The split's part of the manifest."""
        shards = [shard.path.name for shard in self._shards]
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes, "shards": shards}

    def files(self) -> dict[str, dict[str, Any]]:
        """Size and hash of each file written, by name."""
        return {file.path.name: file.facts() for file in (*self._shards, *self._columns.values())}

    def _append(self, column: str, values: ArrayLike) -> None:
        self._columns[column].write(np.asarray(values, dtype=_COLUMNS[column]))


class _HashedFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = open(path, "wb")  # noqa: SIM115 - closed by SplitWriter
        self._digest = hashlib.sha256()

    def write(self, values: np.ndarray) -> None:
        content = values.tobytes()
        self._handle.write(content)
        self._digest.update(content)

    def close(self) -> None:
        self._handle.close()

    def facts(self) -> dict[str, Any]:
        return {"bytes": self.path.stat().st_size, "sha256": self._digest.hexdigest()}


def file_facts(path: Path) -> dict[str, Any]:
    """A file's entry under `"files"` in the manifest."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 over the hashes of the tokenizer and of all shards, in their order."""
    names = ["tokenizer.json", *(shard for name in SPLITS for shard in manifest["splits"][name]["shards"])]
    return hashlib.sha256("\n".join(manifest["files"][name]["sha256"] for name in names).encode()).hexdigest()


_REMEDY = "restore the file or build the dataset again with `inazuma data build`"


def _check_files(folder: Path, files: dict[str, dict[str, Any]], *, verify: bool) -> None:
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing; {_REMEDY}")
        if (size := path.stat().st_size) != facts["bytes"]:
            raise UserError(f"{path}: has {size} bytes instead of {facts['bytes']}; {_REMEDY}")
        if verify and sha256(path) != facts["sha256"]:
            raise UserError(f"{path}: its content has changed (SHA-256 differs from the manifest); {_REMEDY}")
