"""Scores at chance, at the majority's share, at the floor or at the ceiling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from inazuma.evaluate.audit.finding import Found, Undecided, Word
from inazuma.evaluate.audit.log import Sample, Study
from inazuma.evaluate.audit.measure import binary, judged, percent, values
from inazuma.evaluate.audit.text import normal
from inazuma.runs.intervals import wilson

NUMBER = "V24"
TITLE = "At chance or at the ceiling"
SOURCE = "saturated needle tests; CORE-Bench: 42 to 78 % by another scaffold alone, and more once grading was repaired"
FIX = "print chance and majority class beside the score; draw no conclusion at chance or at the ceiling"

_CEILING = 0.98
_CLASSES = 10
_FEWEST = 20


def check(study: Study) -> Iterator[Word]:
    for _, task, name in study.tasks():
        samples = judged(task.samples)
        x = values(samples)
        if not len(x) or not binary(x):
            continue
        right, n = float(x.sum()), len(x)
        low, high = wilson(right, n)
        said = f"{percent(x.mean())} of {n} ({percent(low)} to {percent(high)})"
        chance = _chance(samples)
        majority = _majority(samples)
        if low > _CEILING:
            yield Found(name, f"at the ceiling: {said}")
        elif right == 0 and n >= _FEWEST:
            yield Found(name, f"at the floor: nothing of {n} is right")
        elif chance and low <= chance:
            yield Found(name, f"not above chance: {said}, chance is {percent(chance)}")
        elif majority is not None and low <= majority:
            yield Found(name, f"not above the most frequent key: {said}, which alone gives {percent(majority)}")
        elif chance is None and (not task.generates or any(sample.choices for sample in samples)):
            yield Undecided(name, "the chance level is not known")


def _chance(samples: Sequence[Sample]) -> float | None:
    known = [sample.chance for sample in samples if sample.chance is not None]
    return sum(known) / len(known) if len(known) == len(samples) else None


def _majority(samples: Sequence[Sample]) -> float | None:
    """The share of the most frequent key where all items choose among the same few."""
    if len({sample.choices for sample in samples}) > 1 and not _same_few(samples):
        return None
    keys = [normal(sample.target) for sample in samples if sample.target is not None]
    counts = Counter(keys)
    if len(keys) < len(samples) or not 2 <= len(counts) <= _CLASSES or len(keys) < _FEWEST:
        return None
    # Few keys among few items may be coincidence of a generated task; a class is what returns often.
    return counts.most_common(1)[0][1] / len(keys) if len(keys) >= 5 * len(counts) else None


def _same_few(samples: Sequence[Sample]) -> bool:
    return len({tuple(sorted(map(normal, sample.choices))) for sample in samples if sample.choices}) == 1
