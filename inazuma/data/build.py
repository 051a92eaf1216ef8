"""From a corpus to a dataset: find the text, settle the tokenizer, drop duplicates, split, encode, write, record.

Nothing here depends on the machine or on chance: which split a document belongs to follows from its content alone,
and the same files give the same bytes again.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import inazuma
from inazuma.data.corpus import Corpus, Document, find_corpus
from inazuma.data.duplicates import SeenDigests
from inazuma.data.shards import FORMAT, SPLITS, VERSION, SplitWriter, file_facts, fingerprint
from inazuma.data.tokenizer import (
    END_OF_TEXT,
    SMALLEST_VOCABULARY,
    Sample,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from inazuma.errors import UserError
from inazuma.files import atomic_folder, fresh_folder, write_json

SHARD_TOKENS = 64 << 20
BATCH_BYTES = 2 << 20
BATCH_DOCUMENTS = 1 << 15
REPORT_BYTES = 1 << 20
COUNTS = (
    "read",
    "empty",
    "duplicates",
    "invalid_utf8_documents",
    "invalid_utf8_sequences",
    "not_restored",
    "skipped_files",
)
"""What the manifest counts under `"documents"`."""

Progress = Callable[[str, int, int | None], None]
"""`progress(phase, bytes_done, bytes_total)`; the total is None where it cannot be known."""


def build(
    paths: Sequence[Path],
    out: Path,
    *,
    vocab_size: int = 8192,
    tokenizer: Path | None = None,
    validation_fraction: float = 0.02,
    text_field: str = "text",
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepares a dataset in the folder `out` and returns its manifest.

    `paths` are files and folders (see `find_corpus`); `text_field` is the JSON field or column that holds the text.
    With `tokenizer` (a `tokenizer.json`) none is trained and `vocab_size` does not matter. A text of more than 1 MiB
    becomes several documents. Memory does not grow with the corpus, but for 16 bytes a document.

    Raises `UserError` for input that cannot be used and for an `out` that exists and is not `force`d; then `out` is
    as it was before.
    """
    out = Path(out)
    _check_arguments(paths, out, vocab_size=vocab_size, validation_fraction=validation_fraction, force=force)
    report = progress or (lambda phase, done, total: None)
    corpus = find_corpus(paths, exclude=out)
    with atomic_folder(out) as folder:
        if tokenizer is None:
            encoder = _train(corpus, text_field, vocab_size, validation_fraction, report)
            end_of_text = END_OF_TEXT
        else:
            encoder, end_of_text = load_tokenizer(tokenizer)
        save_tokenizer(encoder, end_of_text, folder, given=tokenizer)
        facts = {
            "trained": tokenizer is None,
            # Not the number of entries: ids may have gaps in a tokenizer that was put together by hand.
            "vocab_size": max(encoder.get_vocab(with_added_tokens=True).values()) + 1,
            "end_of_text": encoder.token_to_id(end_of_text),
            "end_of_text_token": end_of_text,
        }
        dtype = "<u2" if facts["vocab_size"] <= 1 << 16 else "<u4"
        counts = Counter(skipped_files=corpus.skipped)
        with ExitStack() as stack:
            writers = [stack.enter_context(SplitWriter(folder, name, dtype, SHARD_TOKENS)) for name in SPLITS]
            documents = _read(corpus, text_field, counts, "encoding", report)
            _write_splits(documents, writers, encoder, facts, validation_fraction, counts)
        write_json(folder / "sources.json", [str(source.path) for source in corpus.sources])
        files = {
            name: file_facts(folder / name) for name in ("tokenizer.json", "tokenizer_config.json", "sources.json")
        }
        for writer in writers:
            files |= writer.files()
        packages = {name: version(name) for name in ("tokenizers", "numpy", "pyarrow")}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "inazuma": inazuma.__version__,
            "packages": {"python": platform.python_version()} | packages,
            "sources": {"paths": [str(path) for path in paths], "files": len(corpus.sources), "bytes": corpus.bytes},
            "text_field": text_field,
            "validation_fraction": validation_fraction,
            "documents": {name: counts[name] for name in COUNTS},
            "tokenizer": facts,
            "dtype": dtype,
            "shard_tokens": SHARD_TOKENS,
            "splits": {name: writer.facts() for name, writer in zip(SPLITS, writers, strict=True)},
            "files": files,
        }
        manifest["fingerprint"] = fingerprint(manifest)
        write_json(folder / "manifest.json", manifest)
        fresh_folder(out, force=force)
    return manifest


def _check_arguments(
    paths: Sequence[Path], out: Path, *, vocab_size: int, validation_fraction: float, force: bool
) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"a vocabulary of {vocab_size}: {SMALLEST_VOCABULARY} is the least (256 bytes and a marker)")
    if not 0 < validation_fraction < 1:
        raise UserError(f"a validation fraction of {validation_fraction}: it must lie between 0 and 1")
    if not (force and out.is_dir()):
        fresh_folder(out, force=False)
    for path in map(Path, paths):
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{path}: lies in the output folder {out}, which will be replaced; choose another output")


def _read(corpus: Corpus, text_field: str, counts: Counter[str], phase: str, report: Progress) -> Iterator[Document]:
    """The corpus's documents, with a report at the beginning, at every few megabytes, and at the end."""
    begins = np.cumsum([0, *(source.size for source in corpus.sources)]).tolist()
    reported = 0
    report(phase, 0, corpus.bytes)
    for document in corpus.documents(text_field, counts):
        yield document
        done = begins[document.source] + document.position
        if done - reported >= REPORT_BYTES:
            report(phase, done, corpus.bytes)
            reported = done
    report(phase, corpus.bytes, corpus.bytes)


def _place(document: Document) -> float:
    """A number in [0, 1) that follows from the text: documents below the validation fraction are validation."""
    return (int.from_bytes(document.digest[:8]) >> 11) / (1 << 53)


def _train(corpus: Corpus, text_field: str, vocab_size: int, validation_fraction: float, report: Progress) -> Tokenizer:
    """Trains a tokenizer on a sample of the texts, never on those that validate the model."""
    sample = Sample()
    for document in _read(corpus, text_field, Counter(), "reading", report):
        if _place(document) >= validation_fraction:
            # The other half of the digest, so that being sampled says nothing about the split.
            sample.offer(int.from_bytes(document.digest[8:]), document.text, document.bytes)
    report("training the tokenizer", 0, None)
    return train_tokenizer(sample, vocab_size)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.bytes
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write_splits(
    documents: Iterable[Document],
    writers: Sequence[SplitWriter],
    encoder: Tokenizer,
    facts: dict[str, Any],
    validation_fraction: float,
    counts: Counter[str],
) -> None:
    """Drops duplicates and writes each document to its split (`writers`: train, validation); neither stays empty."""
    seen = SeenDigests()
    lowest, highest = 1.0, 0.0
    for batch in _batches(documents):
        new = seen.add([document.digest for document in batch])
        counts["duplicates"] += len(batch) - int(new.sum())
        for validation, writer in enumerate(writers):
            chosen = []
            for index in np.flatnonzero(new):
                place = _place(batch[index])
                lowest, highest = min(lowest, place), max(highest, place)
                if (place < validation_fraction) == validation:
                    chosen.append(batch[index])
            if chosen:
                encoded = _encode(chosen, encoder)
                writer.add(chosen, encoded, facts["end_of_text"])
                if not facts["trained"]:
                    counts["not_restored"] += _not_restored(chosen, encoded, encoder)
    _check_splits([writer.documents for writer in writers], lowest, highest, validation_fraction)


def _encode(documents: Sequence[Document], encoder: Tokenizer) -> list[list[int]]:
    texts = [document.text for document in documents]
    return [encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def _not_restored(documents: Sequence[Document], encoded: list[list[int]], encoder: Tokenizer) -> int:
    """How many documents do not come back from their tokens: a tokenizer that loses text flatters bits per byte."""
    restored = encoder.decode_batch(encoded, skip_special_tokens=False)
    return sum(document.text != text for document, text in zip(documents, restored, strict=True))


def _check_splits(documents: Sequence[int], lowest: float, highest: float, validation_fraction: float) -> None:
    if all(documents):
        return
    total = sum(documents)
    if total == 0:
        raise UserError("no text to read: every document is empty")
    if total == 1:
        raise UserError("the corpus has only one document and two splits to fill: add documents or divide the file")
    # The smallest fraction of three digits that gives both splits a document, if there is one.
    enough = (math.floor(lowest * 1000) + 1) / 1000
    remedy = f"pass --validation-fraction {enough:g} or add documents" if enough <= highest else "add documents"
    empty = SPLITS[documents.index(0)]
    raise UserError(
        f"the {empty} split is empty: {total} documents are too few for a validation fraction of "
        f"{validation_fraction:g}; {remedy}"
    )
