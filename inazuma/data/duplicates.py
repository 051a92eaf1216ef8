"""Which documents have been seen before, at 16 bytes a document.

A Python set of digests costs over 100 bytes each: more memory than the rest of the build for a corpus of short texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inazuma.data.corpus import DIGEST_BYTES


def among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool `[len(values)]`: which are among the known ones, which are sorted and at least one."""
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


class SeenDigests:
    """A set of digests, kept as a few sorted arrays of growing length that are merged as in a merge sort."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, digests: Sequence[bytes]) -> np.ndarray:
        """Adds digests; returns bool `[len(digests)]`, True where one had not been added before, here or earlier."""
        # Fixed-width byte strings compare as their bytes do, and unlike "V16" they can be sorted.
        unique, where = np.unique(np.array(digests, dtype=f"S{DIGEST_BYTES}"), return_index=True)
        seen = np.zeros(len(unique), dtype=bool)
        for run in self._runs:
            seen |= among(unique, run)
        run = unique[~seen]
        while self._runs and len(self._runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        if len(run):
            self._runs.append(run)
        first = np.zeros(len(digests), dtype=bool)
        first[where[~seen]] = True
        return first
