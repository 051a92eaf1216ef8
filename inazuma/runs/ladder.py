"""The smallest rung of a ladder of models that is good enough, as formulas over the rungs' samples of the same items.

The question of each rung is by how much it falls short of the best. Which one is the best is not known either, so both
are decided in one bootstrap: items (or their clusters) are drawn with replacement, the same for all rungs, and in every
draw each rung is held against the best of that draw. The share of draws in which a rung falls short by more than the
margin is the p-value of calling it good enough, the share in which it does not that of calling it too weak; each family
is adjusted by Holm (Scandinavian Journal of Statistics 6, 1979). A rung that is neither leaves the question open.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from scipy.stats import binom

from inazuma.errors import UserError
from inazuma.runs.formulas import Figures, formula
from inazuma.runs.intervals import RESAMPLES, cluster_numbers, holm, items_needed
from inazuma.runs.scores import answered, sample_interval

SEED = 0
MOST = 1_000_000
"""The largest number of further labels that is named; beyond it the difference is as good as the margin."""


@dataclass(frozen=True)
class Verdict:
    """What the ladder says, and the p-values it rests on, a rung each."""

    kind: Literal["smallest-sufficient", "cannot-tell"]
    rung: str
    """The rung to use: the smallest that is shown to be good enough; where none is, the best that was seen."""
    more_labels: int
    """About how many more labelled test items would decide, with 80 % power; 0 where it is decided."""
    open: str
    """The rung of which it cannot be told whether it is good enough; empty where it is decided."""
    reason: Literal["decided", "too few items", "nothing learnt"]
    """"nothing learnt": the floor itself is within the margin of the best, which says nothing of the task."""
    probability: float
    """The share of draws in which `rung` falls short of the best by at most the margin."""
    sufficient: Mapping[str, float]
    """Holm's p-value of falling short by more than the margin."""
    insufficient: Mapping[str, float]
    """Holm's p-value of falling short by at most the margin."""


def joint_means(scores: np.ndarray, clusters: Sequence[str | None] | None, seed: int = SEED) -> np.ndarray:
    """Means of `[rungs, items]` over draws of whole clusters, the same for all rungs: float64 `[2000, rungs]`."""
    number = cluster_numbers(clusters, scores.shape[1])
    groups = int(number.max()) + 1
    sums = np.stack([np.bincount(number, weights=row, minlength=groups) for row in scores])
    sizes = np.bincount(number, minlength=groups)
    random = np.random.Generator(np.random.PCG64(seed))
    means = np.empty((RESAMPLES, len(scores)))
    for draw in range(RESAMPLES):
        weights = np.bincount(random.integers(0, groups, size=groups), minlength=groups)
        means[draw] = sums @ weights / (sizes @ weights)
    return means


def judge(
    names: Sequence[str],
    scores: np.ndarray,
    clusters: Sequence[str | None] | None,
    *,
    margin: float,
    confidence: float,
    eligible: Sequence[str] | None = None,
    floor: str = "majority",
    seed: int = SEED,
) -> Verdict:
    """The verdict on rungs `names`, smallest first, with scores `[rungs, items]`.

    Only `eligible` rungs may be chosen or set the standard, and `floor` is never the answer. Where few items differ,
    the bootstrap alone would be too sure; the p-value is then at least the binomial chance of seeing so few losses to
    any other rung at a shortfall of the margin.
    """
    kept = [i for i, name in enumerate(names) if eligible is None or name in eligible]
    if not kept:
        raise UserError("no rung keeps to the limits")
    names, scores = [names[i] for i in kept], scores[kept]
    means = joint_means(scores, clusters, seed)
    # A tolerance for sums that are equal but for rounding.
    short = means.max(axis=1, keepdims=True) - means
    beyond = (short > margin + 1e-12).sum(axis=0)
    p_short = (1 + beyond) / (RESAMPLES + 1)
    p_within = (1 + RESAMPLES - beyond) / (RESAMPLES + 1)
    observed = scores.mean(axis=1)
    best = int(np.argmax(observed))
    number = cluster_numbers(clusters, scores.shape[1])
    groups = int(number.max()) + 1
    sums = np.stack([np.bincount(number, weights=row, minlength=groups) for row in scores])
    for i, j in itertools.permutations(range(len(names)), 2):
        won, lost = int((sums[i] > sums[j] + 1e-12).sum()), int((sums[j] > sums[i] + 1e-12).sum())
        p_short[i] = max(p_short[i], float(binom.cdf(lost, groups, min(1.0, margin + won / groups))))
    sufficient, insufficient = holm(p_short), holm(p_within)
    alpha = 1 - confidence
    shown = [i for i in range(len(names)) if sufficient[i] <= alpha]
    chosen = shown[0] if shown else best
    smaller = range(chosen) if shown else [i for i in range(len(names)) if i != best]
    doubtful = [i for i in smaller if insufficient[i] > alpha] or ([] if shown else [best])
    more = 0
    if doubtful:
        rival = (
            doubtful[0] if doubtful[0] != best else int(np.argsort(-observed, kind="stable")[min(1, len(names) - 1)])
        )
        more = _more(scores[best] - scores[rival], number, margin, alpha / len(names))
    nothing = names[chosen] == floor and bool(shown)
    return Verdict(
        kind="cannot-tell" if doubtful or nothing else "smallest-sufficient",
        rung=names[chosen],
        more_labels=more,
        open=names[doubtful[0]] if doubtful else "",
        reason="nothing learnt" if nothing else "too few items" if doubtful else "decided",
        probability=float(1 - beyond[chosen] / RESAMPLES),
        sufficient=dict(zip(names, sufficient, strict=True)),
        insufficient=dict(zip(names, insufficient, strict=True)),
    )


def _more(shortfall: np.ndarray, number: np.ndarray, margin: float, alpha: float) -> int:
    """Further items that tell a mean shortfall from the margin, should it be what it seems; two digits."""
    n = len(shortfall)
    mean = float(shortfall.mean())
    groups = int(number.max()) + 1
    sums = np.bincount(number, weights=shortfall - mean, minlength=groups)
    # Without any spread in sight: as much as items make that differ half as often as the margin.
    variance = max(float((sums**2).sum()) / n, margin / 2)
    gap = max(abs(margin - mean), 1e-6)
    more = min(MOST, max(1, math.ceil(items_needed(gap, variance, alpha) - n)))
    # A bootstrap that is short of certain with enough items by this plan needs some more all the same.
    more = max(more, n // 4)
    unit = 10 ** max(0, len(str(more)) - 2)
    return -(-more // unit) * unit


# --------------------------------------------------------------------------------------------------------- formulas

_MATRICES: WeakKeyDictionary[Figures, dict[Any, Any]] = WeakKeyDictionary()


def _matrix(figures: Figures, records: Mapping[str, str], task: str) -> tuple[np.ndarray, list[str | None]]:
    """Scores `[rungs, items]` of the same items in the same order, and their clusters."""
    cache = _MATRICES.setdefault(figures, {})
    key = (tuple(records.items()), task)
    if key not in cache:
        rows: list[list[float]] = []
        first: list[Any] | None = None
        clusters: list[str | None] = []
        for record in records.values():
            lines = answered(figures, record, task)
            items = [line.get("item") for line in lines]
            if first is None:
                first, clusters = items, [line.get("cluster") for line in lines]
            if items != first:
                raise UserError(f"{record}: not the same items, in the same order, as the other rungs")
            rows.append([float(line["score"]) for line in lines])
        cache[key] = np.array(rows), clusters
    return cache[key]


def _means(figures: Figures, records: Mapping[str, str], task: str) -> np.ndarray:
    """The `joint_means` of all rungs."""
    cache = _MATRICES.setdefault(figures, {})
    key = ("means", tuple(records.items()), task)
    if key not in cache:
        cache[key] = joint_means(*_matrix(figures, records, task))
    return cache[key]


def _verdict(
    figures: Figures,
    records: Mapping[str, str],
    task: str,
    margin: float,
    confidence: float,
    eligible: Sequence[str] | None,
    floor: str = "majority",
) -> Verdict:
    cache = _MATRICES.setdefault(figures, {})
    chosen = None if eligible is None else tuple(eligible)
    key = ("verdict", tuple(records.items()), task, margin, confidence, floor, chosen)
    if key not in cache:
        scores, clusters = _matrix(figures, records, task)
        rule = {"margin": margin, "confidence": confidence, "eligible": eligible, "floor": floor}
        cache[key] = judge(list(records), scores, clusters, **rule)
    return cache[key]


@formula
def ladder_verdict(
    figures: Figures,
    *,
    records: Mapping[str, str],
    task: str,
    margin: float,
    confidence: float,
    part: Literal["kind", "rung", "more_labels", "open", "reason", "probability"],
    eligible: Sequence[str] | None = None,
    floor: str = "majority",
) -> Any:
    """One part of the verdict on rungs, smallest first; `records` maps each to its samples."""
    return getattr(_verdict(figures, records, task, margin, confidence, eligible, floor), part)


@formula
def ladder_p(
    figures: Figures,
    *,
    records: Mapping[str, str],
    task: str,
    margin: float,
    confidence: float,
    rung: str,
    part: Literal["sufficient", "insufficient"],
    eligible: Sequence[str] | None = None,
    floor: str = "majority",
) -> float:
    """Holm's p-value that a rung falls short of the best by more than the margin, or that it does not."""
    return getattr(_verdict(figures, records, task, margin, confidence, eligible, floor), part)[rung]


@formula
def ladder_shortfall(
    figures: Figures, *, records: Mapping[str, str], task: str, rung: str, level: float = 0.95
) -> list[float]:
    """[low, high] of how far a rung falls short of the best, which every draw chooses anew.

    The high end of 90 % is the smallest margin from which on the rung passes a one-sided test at 5 %, before Holm.
    """
    means = _means(figures, records, task)
    short = means.max(axis=1) - means[:, list(records).index(rung)]
    tail = (1 - level) / 2
    return np.quantile(short, [tail, 1 - tail]).tolist()


@formula
def ladder_front(
    figures: Figures, *, records: Mapping[str, str], task: str, costs: Mapping[str, str], rung: str
) -> float:
    """The share of draws in which no other rung is at least as good and costs at most as much (one of them strictly);
    `costs` maps each rung to the figure of its cost."""
    means = _means(figures, records, task)
    price = np.array([float(figures.figure(costs[name])) for name in records])
    i = list(records).index(rung)
    own = means[:, [i]]
    beaten = (price <= price[i]) & (means >= own) & ((price < price[i]) | (means > own))
    beaten[:, i] = False
    return float(1 - beaten.any(axis=1).mean())


@formula
def quality_bound(
    figures: Figures, *, record: str, task: str, end: Literal["low", "high"], level: float = 0.95
) -> float:
    """One end of `sample_interval`."""
    return sample_interval(figures, record=record, task=task, level=level)[0 if end == "low" else 1]
