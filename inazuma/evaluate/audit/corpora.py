"""Texts beside a study: reading them, and which of two sets are the same or nearly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import strict_lines, text
from inazuma.evaluate.audit.text import grams

_ALIKE = 0.7
"""Shared over all runs of 3 words: near duplicates in the sense of Lee et al., arXiv 2107.06499, who take 0.8 of 5."""
_RUN = 3


def read_texts(folder: Path, paths: Sequence[Path]) -> list[tuple[str, str | None]]:
    """(text, group) of every line of JSON lines files; a `UserError` names a line without a text."""
    found = []
    for path in paths:
        path = folder / path
        if not path.is_file():
            raise UserError(f"{path}: no such file, and study.yaml names it")
        for where, record in strict_lines(path):
            if not isinstance(record.get("text"), str):
                raise UserError(f"{path.parent}/{where}: no field 'text'")
            found.append((record["text"], text(record.get("group"))))
    return found


def near_duplicates(of: Sequence[str], among: Sequence[str]) -> list[int]:
    """Which of the first texts have an equal or nearly equal one among the second (exact, by an index of word runs)."""
    sets = [grams(text, _RUN) for text in among]
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, found in enumerate(sets):
        for gram in found:
            index[gram].append(at)
    hits = []
    for at, value in enumerate(of):
        own = grams(value, _RUN)
        shared = Counter(other for gram in own for other in index.get(gram, ()))
        if any(count / (len(own) + len(sets[other]) - count) >= _ALIKE for other, count in shared.items()):
            hits.append(at)
    return hits
