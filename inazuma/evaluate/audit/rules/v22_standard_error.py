"""A standard error, interval or mean that its own samples contradict."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word
from inazuma.evaluate.audit.log import Sample, Score, Study, Task
from inazuma.evaluate.audit.measure import binary, judged
from inazuma.runs.intervals import standard_error, wilson

NUMBER = "V22"
TITLE = "Standard error that cannot be right"
SOURCE = (
    "lm-evaluation-harness#3966: the Open LLM Leaderboard showed 0.0 for scores between 0 and 1; lighteval's bootstrap "
    "divides by the square root of its 1,000 draws once too often and is 31.6 times too small"
)
FIX = "report the standard deviation over the square root of n (Wilson's interval for 0/1), or that of bootstrap means"

_AGREES = 0.1
_ROUNDED = 0.006
"""Half of the second decimal place, and a little."""
_FEWEST = 5
_ZERO_ONE = ("acc", "acc_norm", "accuracy", "exact_match", "em", "quasi_exact_match", "score")


def check(study: Study) -> Iterator[Word]:
    judged_any = False
    for _, task, name in study.tasks():
        for score in task.scores:
            if score.stderr is None and score.interval is None and not task.samples:
                continue
            words = list(_score(task, score, f"{name}: {score.metric}" if len(task.scores) > 1 else name))
            judged_any = judged_any or words != [None]
            yield from (word for word in words if word is not None)
    if not judged_any:
        yield Nothing("no reported error can be held against samples")


def _score(task: Task, score: Score, name: str) -> Iterator[Word | None]:
    pairs = [(s, v) for s in task.samples if (v := s.metrics.get(score.metric, _own(s, task, score))) is not None]
    if len(pairs) < _FEWEST:
        yield from _without_samples(score, name)
        return
    samples, x = [s for s, _ in pairs], np.array([v for _, v in pairs], dtype=np.float64)
    if x.min() < 0 or x.max() > 1:
        yield None  # not the mean of scores: a perplexity, a corpus figure
        return
    means = _means(task, x, samples)
    # Only metrics whose mean is what is reported can be judged by it.
    if binary(x) and min(abs(score.value - mean) for mean in means) > _ROUNDED:
        yield Found(name, f"reported {score.value:.4f}; its {len(x)} samples give {means[0]:.4f}")
        return
    if min(abs(score.value - mean) for mean in means) > _ROUNDED:
        yield None
        return
    yield from _error(score, x, samples, name)
    yield from _interval(score, x, name)


def _own(sample: Sample, task: Task, score: Score) -> float | None:
    return sample.score if not sample.metrics and score is task.scores[0] else None


def _means(task: Task, x: np.ndarray, samples: Sequence[Sample]) -> list[float]:
    """The means that one may report: of all scores, of those that are evidence, with what has no score as 0."""
    evidence = judged(samples)
    found = [float(x.mean()), float(x.sum()) / max(1, len(task.samples))]
    if evidence and len(evidence) < len(samples):
        found.append(float(np.mean([s.score for s in evidence])))
    return found


def _errors(x: np.ndarray, samples: Sequence[Sample]) -> list[float]:
    """The standard errors that one may report: of samples, of items whose repeats are averaged, of clusters."""
    found = [standard_error(x), float(x.std()) / math.sqrt(len(x))]
    by_item = defaultdict(list)
    for sample, value in zip(samples, x, strict=True):
        by_item[sample.item].append(value)
    if len(by_item) < len(x):
        found.append(standard_error(np.array([np.mean(values) for values in by_item.values()])))
        found.append(standard_error(x, [sample.item for sample in samples]))
    if any(sample.cluster is not None for sample in samples):
        found.append(standard_error(x, [sample.cluster or sample.item for sample in samples]))
    evidence = [sample.score for sample in judged(samples)]
    if 1 < len(evidence) < len(x):
        found.append(standard_error(np.array(evidence)))
    return [error for error in found if math.isfinite(error)]


def _error(score: Score, x: np.ndarray, samples: Sequence[Sample], name: str) -> Iterator[Word]:
    if score.stderr is None:
        return
    possible = _errors(x, samples)
    if max(possible) == 0 and score.stderr == 0:
        return
    if not any(_agrees(score.stderr, error) for error in possible):
        ratio = score.stderr / possible[0] if possible[0] else math.inf
        yield Found(
            name,
            f"standard error {score.stderr:.3g} of {len(x)} samples with mean {x.mean():.4f}; they give "
            f"{possible[0]:.3g}, "
            f"so it is {ratio:.3g} times what it should be",
        )


def _agrees(reported: float, error: float) -> bool:
    """Within a tenth; or up to its last digit where it was given to a few digits, but zero is no rounded error."""
    digits = len(repr(reported).partition(".")[2]) if "e" not in repr(reported) else 9
    return reported > 0 and abs(reported - error) <= max(_AGREES * error, 0.51 * 10.0**-digits)


def _interval(score: Score, x: np.ndarray, name: str) -> Iterator[Word]:
    if score.interval is None:
        return
    low, high = score.interval
    if not low - 1e-9 <= score.value <= high + 1e-9:
        yield Found(name, f"the interval [{low:.4f}, {high:.4f}] does not hold the score {score.value:.4f}")
    elif binary(x):
        right = wilson(float(x.sum()), len(x))
        if high - low < 0.5 * (right[1] - right[0]):
            yield Found(
                name,
                f"the interval [{low:.4f}, {high:.4f}] is less than half as wide as {len(x)} 0/1 items allow "
                f"([{right[0]:.4f}, {right[1]:.4f}])",
            )


def _without_samples(score: Score, name: str) -> Iterator[Word | None]:
    """What the score alone tells: zero is wrong for 0 < p < 1; else the closed form, where n is known."""
    p = score.value
    if score.metric not in _ZERO_ONE or not 0 < p < 1 or score.stderr is None:
        yield None
    elif score.stderr == 0:
        yield Found(name, f"standard error 0 of a score of {p:.4f}")
    elif score.n is None or score.n < _FEWEST:
        yield Undecided(name, "neither samples nor their number are here")
    elif score.stderr < 0.5 * (closed := math.sqrt(p * (1 - p) / (score.n - 1))) or score.stderr > 3 * closed:
        yield Found(
            name, f"standard error {score.stderr:.3g} of {score.n} items at {p:.4f}; 0/1 scores give {closed:.3g}"
        )
