"""Which evaluation items occur in a text, word for word or nearly: an index of the items, past which the texts stream.

Words are compared, in Unicode's NFKC form, lower case and without punctuation; where a script writes no spaces, each
character is a word. Two things are searched:

* *Overlap*: 13 words in a row (the length of GPT-3's decontamination, Brown et al., arXiv 2005.14165, appendix C). An
  item of 8 to 12 words overlaps where all of them stand in a row; one of fewer words cannot be decided, as such phrases
  occur by chance. This search is exact: it misses none and invents none.
* *Near duplicates*: windows as long as the item, or as its pieces of 64 words, that hold half of its trigrams.
  Windows are taken at steps of an eighth of that length, MinHash (datasketch) finds the pieces that each may resemble,
  and the share is then counted exactly. At half the trigrams MinHash misses less than one in a million, unless a text
  repeats itself so much that it has few different ones.

Neither finds a paraphrase or a translation. Memory holds the items and one document, however large the corpus is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasketch import MinHash, MinHashLSH

from inazuma.data.duplicates import among
from inazuma.errors import UserError

GRAM = 13
SHORTEST = 8
"""Words below which an item cannot be decided."""
PIECE = 64
NEAR = 0.5
"""Share of a piece's trigrams that a near duplicate holds."""
KEPT = 5
"""Places that are kept of each item; all are counted."""

_BANDS = (128, 2)
# Thai to Lao, Burmese, Khmer, kana, Han: scripts without spaces, whose every character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BITS = 21
_MIX = np.random.Generator(np.random.PCG64(0)).integers(0, 1 << 63, size=GRAM, dtype=np.uint64) * np.uint64(2) + 1


def words_of(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass
class Place:
    """Where words of an item stand in a document; words are counted from 0."""

    document: int
    source: str
    item_words: tuple[int, int]
    """First word of the item and the one after the last."""
    document_word: int
    text: str
    """The document's words there."""
    share: float = 1.0
    """Of the piece's trigrams; 1 for words in a row."""


@dataclass
class Found:
    """What was found of one item."""

    words: int
    covered: np.ndarray
    """bool `[words]`: which of its words stand in an overlap."""
    overlaps: list[Place] = field(default_factory=list)
    near: list[Place] = field(default_factory=list)
    documents: int = 0
    """How many documents hold an overlap or a near duplicate."""
    last_document: int = -1

    @property
    def decidable(self) -> bool:
        return self.words >= SHORTEST

    def place(self, kind: list[Place], place: Place) -> None:
        if self.last_document != place.document:
            self.documents += 1
            self.last_document = place.document
        if len(kind) < KEPT:
            kind.append(place)


@dataclass(frozen=True)
class _Piece:
    item: int
    start: int
    length: int
    trigrams: frozenset[int]


class ItemIndex:
    """The index of the items' texts. Call `scan` with every document, then read `found`."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        items = [[self._vocabulary.setdefault(w, len(self._vocabulary) + 1) for w in words_of(t)] for t in texts]
        if len(self._vocabulary) >= 1 << _BITS:
            raise UserError(f"the items have more than {1 << _BITS} different words; check them in parts")
        self.found = [Found(len(item), np.zeros(len(item), dtype=bool)) for item in items]
        self._grams: dict[int, dict[tuple[int, ...], list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        self._pieces: list[_Piece] = []
        for number, item in enumerate(items):
            if len(item) < SHORTEST:
                continue
            length = min(GRAM, len(item))
            for start in range(len(item) - length + 1):
                self._grams[length][tuple(item[start : start + length])].append((number, start))
            self._pieces += _pieces(number, np.array(item, dtype=np.int64))
        self._hashes = {
            length: np.unique(_hash_windows(np.array(list(grams)), length)) for length, grams in self._grams.items()
        }
        self._trigrams = np.array(sorted({t for piece in self._pieces for t in piece.trigrams}), dtype=np.int64)
        self._similar = MinHashLSH(num_perm=_BANDS[0] * _BANDS[1], params=_BANDS)
        self._least: dict[int, int] = {}
        for number, piece in enumerate(self._pieces):
            self._similar.insert(number, _signature(piece.trigrams))
            least = int(np.ceil(NEAR * len(piece.trigrams)))
            self._least[piece.length] = min(least, self._least.get(piece.length, least))

    def scan(self, document: int, source: str, text: str) -> int:
        """Looks for the items in one document and returns how many words it has."""
        words = words_of(text)
        get = self._vocabulary.get
        ids = np.fromiter((get(word, 0) for word in words), dtype=np.int64, count=len(words))
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        for length in self._grams:
            self._scan_grams(document, source, words, ids, unknown, length)
        self._scan_windows(document, source, words, ids, unknown)
        return len(words)

    def _scan_grams(
        self, document: int, source: str, words: list[str], ids: np.ndarray, unknown: np.ndarray, length: int
    ) -> None:
        # Only where every word is a word of some item; everything else cannot match.
        starts = np.flatnonzero(unknown[length:] == unknown[:-length])
        if not len(starts):
            return
        windows = np.lib.stride_tricks.sliding_window_view(ids, length)[starts]
        hits = among(_hash_windows(windows, length), self._hashes[length])
        grams = self._grams[length]
        going: dict[tuple[int, int], Place] = {}
        for start in starts[hits].tolist():
            for item, offset in grams.get(tuple(ids[start : start + length].tolist()), ()):
                found = self.found[item]
                found.covered[offset : offset + length] = True
                place = going.get((item, start - offset))
                if place is not None and place.item_words[1] >= offset:
                    place.item_words = (place.item_words[0], offset + length)
                else:
                    place = Place(document, source, (offset, offset + length), start, "")
                    going[item, start - offset] = place
                    found.place(found.overlaps, place)
        for place in going.values():
            stop = place.document_word + place.item_words[1] - place.item_words[0]
            place.text = " ".join(words[place.document_word : stop])

    def _scan_windows(self, document: int, source: str, words: list[str], ids: np.ndarray, unknown: np.ndarray) -> None:
        if len(ids) < SHORTEST or not len(self._trigrams):
            return
        trigrams = _trigrams(ids)
        hits = unknown[3:] == unknown[:-3]
        hits[hits] = among(trigrams[hits], self._trigrams)
        if not hits.any():
            return
        total = np.concatenate([[0], np.cumsum(hits)])
        best: dict[int, Place] = {}
        for length, least in self._least.items():
            count = max(1, len(ids) - length + 1)
            starts = np.unique([*range(0, count, max(1, length // 8)), count - 1])
            ends = np.minimum(starts + length - 2, len(trigrams))
            for start, end in zip(
                *(x[total[ends] - total[starts] >= least].tolist() for x in (starts, ends)), strict=True
            ):
                window = frozenset(trigrams[start:end][hits[start:end]].tolist())
                for number in self._similar.query(_signature(window)):
                    piece = self._pieces[number]
                    share = len(piece.trigrams & window) / len(piece.trigrams)
                    if piece.length == length and share >= NEAR and share > best.get(number, _NOTHING).share:
                        span = (piece.start, piece.start + length)
                        text = " ".join(words[start : start + length])
                        best[number] = Place(document, source, span, start, text, share)
        for number, place in best.items():
            found = self.found[self._pieces[number].item]
            if not found.covered[slice(*place.item_words)].any():  # said already, and more exactly
                found.place(found.near, place)


_NOTHING = Place(-1, "", (0, 0), 0, "", 0.0)


def _pieces(item: int, ids: np.ndarray) -> Iterator[_Piece]:
    """An item whole or, where it is longer than `PIECE`, in pieces of which the last ends with it."""
    length = min(PIECE, len(ids))
    for start in {*range(0, len(ids) - length + 1, PIECE), len(ids) - length}:
        yield _Piece(item, start, length, frozenset(_trigrams(ids[start : start + length]).tolist()))


def _trigrams(ids: np.ndarray) -> np.ndarray:
    """Three words in a row as one number; exact, as no id has more than 21 bits."""
    return (ids[:-2] << (2 * _BITS)) | (ids[1:-1] << _BITS) | ids[2:]


def _hash_windows(windows: np.ndarray, length: int) -> np.ndarray:
    """A number for each row; rows that only seem equal by it are told apart by their words."""
    return (windows.astype(np.uint64) * _MIX[:length]).sum(axis=1, dtype=np.uint64)


def _signature(trigrams: frozenset[int]) -> MinHash:
    signature = MinHash(num_perm=_BANDS[0] * _BANDS[1], hashfunc=_low)
    signature.update_batch(trigrams)
    return signature


def _low(trigram: int) -> int:
    """32 mixed bits of a trigram (Fibonacci hashing), which is what datasketch permutes."""
    return (trigram * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> 32
