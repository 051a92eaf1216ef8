"""Bits per byte of held-out text: the one loss that models with different tokenizers can be compared by.

    sum of nats / ln 2 / sum of raw UTF-8 bytes

Documents are the units: each is read alone behind the token that begins a text, its end is not predicted, and the
interval is a bootstrap over documents. In the run folder they are `documents/bits-per-byte.jsonl`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inazuma.data.corpus import Document, find_corpus
from inazuma.errors import UserError
from inazuma.evaluate.answering import Answering

_TEXT_FIELD = "text"


def read_documents(paths: Sequence[str]) -> list[Document]:
    """The documents of files and folders; `UserError` where one occurs twice."""
    documents = list(find_corpus([Path(path) for path in paths]).documents(_TEXT_FIELD, Counter()))
    twice = [digest.hex() for digest, count in Counter(one.digest for one in documents).items() if count > 1]
    if twice:
        raise UserError(f"{', '.join(paths)}: {len(twice)} documents occur more than once (the first: {twice[0]})")
    return documents


def document_records(
    model: Answering, documents: Sequence[Document], progress: Callable[[str, int, int], None]
) -> Iterator[dict[str, Any]]:
    """A record each: `document` (the digest of its text), `nll` (nats), `tokens`, `bytes`.

    Raises `UserError` for a model that does not say what it thinks of a text.
    """
    nats_of = getattr(model, "text_nats", None)
    if nats_of is None:
        raise UserError("bits per byte need a checkpoint on this machine: an address does not say how likely a text is")
    for done, document in enumerate(documents, start=1):
        nats, tokens = nats_of(document.text)
        yield {"document": document.digest.hex(), "nll": nats, "tokens": tokens, "bytes": document.bytes}
        progress("documents", done, len(documents))
