"""What needs no neural network: gzip, and a bigram model of the same tokens. A trained model must clearly beat both."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from inazuma.data.batches import IGNORE, Batch
from inazuma.data.shards import Split

DISCOUNT = 0.75
"""Taken off every seen pair's count and given to the pairs not seen; the customary value."""


class Bigram:
    """Absolute discounting, interpolated with the unigram distribution (Ney, Essen and Kneser, 1994).

        P(w | h) = max(c(h,w) - d, 0) / c(h) + d N(h) / c(h) * P(w),    N(h) the number of different tokens seen after h

    P(w) has one added to every count.
    """

    def __init__(self, batches: Iterable[Batch], vocab_size: int):
        self.vocab_size = vocab_size
        unigram = np.ones(vocab_size)
        pieces = []
        for batch in batches:
            counted = batch.targets != IGNORE
            previous, following = batch.ids[counted], batch.targets[counted]
            unigram += np.bincount(following, minlength=vocab_size)
            pieces.append(previous * vocab_size + following)
        self.unigram = unigram / unigram.sum()
        self.pairs, self.counts = np.unique(np.concatenate(pieces), return_counts=True)
        histories = self.pairs // vocab_size
        self.after = np.bincount(histories, weights=self.counts, minlength=vocab_size)
        self.different = np.bincount(histories, minlength=vocab_size)

    def nll(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Negative log-likelihood of each token given the one before, nats."""
        pair = previous * self.vocab_size + following
        place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == pair, self.counts[place], 0)
        total = self.after[previous]
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = np.where(total > 0, np.maximum(count - DISCOUNT, 0) / total, 0.0)
            rest = np.where(total > 0, DISCOUNT * self.different[previous] / total, 1.0)
        return -np.log(seen + rest * self.unigram[following])


def bigram_losses(bigram: Bigram, batches: Iterable[Batch], documents: int) -> np.ndarray:
    """Nats of each of the split's documents in `batches`, float64 `[documents]`."""
    nats = np.zeros(documents)
    for batch in batches:
        counted = batch.targets != IGNORE
        np.add.at(nats, batch.document[counted], bigram.nll(batch.ids[counted], batch.targets[counted]))
    return nats


def gzip_losses(split: Split, documents: Iterable[int], tokenizer: Tokenizer) -> Iterator[float]:
    """Nats of each document as a gzip file of its own (level 9), header and all."""
    for document in documents:
        start, stop = (int(x) for x in split.document_start[document : document + 2])
        text = tokenizer.decode(split.read(start + 1, stop).tolist(), skip_special_tokens=False)
        yield len(gzip.compress(text.encode(), 9, mtime=0)) * 8 * math.log(2)
