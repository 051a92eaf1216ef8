"""Batches of packed documents, and what each position may see.

Training cuts the stream into windows of equal length and shuffles them; validation packs whole documents, so that
their bits can be summed. In both, every document has exactly n + 1 targets: its n tokens and the end-of-text token
that follows, so bits per byte is the sum of a document's losses / ln 2 / its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from inazuma.data.shards import Split
from inazuma.errors import UserError

IGNORE = -100
"""Target of a padding position, as `torch.nn.functional.cross_entropy` ignores it."""


@dataclass(frozen=True)
class Batch:
    """B rows of T positions. A padding position has `IGNORE`, document −1, and sees only itself."""

    ids: np.ndarray
    """int64 `[B, T]`: input tokens; end-of-text in padding."""
    targets: np.ndarray
    """int64 `[B, T]`: the token that follows each input token in its document or, after the last, end-of-text."""
    first: np.ndarray
    """int32 `[B, T]`: where in its row the position's document begins; 0 if it began before the row."""
    document: np.ndarray
    """int64 `[B, T]`: index of the input token's document in the split."""

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop - 1`."""
        here = slice(start, stop)
        return Batch(self.ids[here], self.targets[here], self.first[here], self.document[here])

    @classmethod
    def padding(cls, rows: int, context: int, end_of_text: int) -> Batch:
        """A batch of padding alone, to be filled."""
        shape = (rows, context)
        return cls(
            ids=np.full(shape, end_of_text, dtype=np.int64),
            targets=np.full(shape, IGNORE, dtype=np.int64),
            first=np.tile(np.arange(context, dtype=np.int32), (rows, 1)),
            document=np.full(shape, -1, dtype=np.int64),
        )


def training_windows(split: Split, *, context: int, position: int, count: int, seed: int) -> Batch:
    """Rows `position` to `position + count - 1` of the endless training sequence of `seed`.

    The stream is cut into ceil(tokens / context) windows, the last one padded; every epoch reads each of them once, in
    its own order. The rows are a function of the arguments alone: training resumes anywhere without replaying.
    """
    windows = -(-split.tokens // context)
    batch = Batch.padding(count, context, split.end_of_text)
    for row in range(count):
        epoch, place = divmod(position + row, windows)
        start = int(_order(windows, seed, epoch)[place]) * context
        stop = min(start + context, split.tokens)
        length = stop - start
        batch.ids[row, :length], batch.targets[row, :length] = _ids_and_targets(split, start, stop)
        document = np.searchsorted(split.document_start, np.arange(start, stop), side="right") - 1
        batch.document[row, :length] = document
        batch.first[row, :length] = np.maximum(split.document_start[document] - start, 0)
    return batch


def evaluation_windows(split: Split, *, context: int, rows: int, max_tokens: int | None = None) -> Iterator[Batch]:
    """Whole documents, packed back to back into windows, as batches of `rows`; the last one is padded.

    Their order is fixed and unlike that of the files, so the first `max_tokens` tokens (end markers counted) sample
    the split: documents are taken until the next one would pass that number; one that is longer by itself is left out.
    Raises `UserError` if no document is short enough.
    """
    batch = Batch.padding(rows, context, split.end_of_text)
    filled = 0
    for document in _evaluated(split, max_tokens):
        start, stop = (int(offset) for offset in split.document_start[document : document + 2])
        read = start
        while read < stop:
            length = min(stop - read, rows * context - filled)
            here = slice(filled, filled + length)
            ids, targets = _ids_and_targets(split, read, read + length)
            batch.ids.reshape(-1)[here] = ids
            batch.targets.reshape(-1)[here] = targets
            batch.document.reshape(-1)[here] = document
            begins = filled - (read - start)  # negative if in an earlier batch
            row = np.arange(filled, filled + length) // context
            batch.first.reshape(-1)[here] = np.maximum(begins - row * context, 0)
            read += length
            filled += length
            if filled == rows * context:
                yield batch
                batch = Batch.padding(rows, context, split.end_of_text)
                filled = 0
    if filled:
        yield batch


def _ids_and_targets(split: Split, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The stream's tokens `start` to `stop - 1`, and the token after each; an end-of-text follows the last of all."""
    tokens = np.append(split.read(start, min(stop + 1, split.tokens)), split.end_of_text)
    return tokens[: stop - start], tokens[1 : stop - start + 1]


def _evaluated(split: Split, max_tokens: int | None) -> Iterator[int]:
    """The documents to evaluate, in order."""
    taken = 0
    for document in _order(split.documents, 0, 0).tolist():
        length = int(split.document_start[document + 1] - split.document_start[document])
        if max_tokens is not None and length > max_tokens:
            continue
        taken += length
        if max_tokens is not None and taken > max_tokens:
            return
        yield document
    if taken == 0:
        raise UserError(f"no validation document is as short as {max_tokens} tokens; raise the number of tokens")


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of `size` windows in an epoch."""
    # RandomState's stream is frozen for good; a Generator's may change with NumPy's version.
    bits = np.random.MT19937(np.random.SeedSequence([seed, epoch]))
    order = np.random.RandomState(bits).permutation(size)
    order.setflags(write=False)
    return order
