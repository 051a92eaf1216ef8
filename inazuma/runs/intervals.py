"""How sure a figure is: standard errors, intervals and the smallest difference that so many items can show.

Items that come from one passage, template, document or prompt are a cluster and are never taken for independent: naming
the clusters widens every figure here as it must. Draws come from a named generator (PCG64) and are added up in a fixed
order, so that the same records give the same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from inazuma.errors import UserError

Interval = tuple[float, float]
RESAMPLES = 2000
POWER = 0.8
_AT_ONCE = 1 << 20
"""Indices drawn at a time: bounds memory, and is a constant, since the order of the draws must not change."""


def cluster_numbers(clusters: Sequence[Hashable] | None, n: int) -> np.ndarray:
    """The number of each item's cluster, int64 `[n]`, in the order in which they first occur.

    None, for all of them or for one, means: a cluster of its own.
    """
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise UserError(f"{len(clusters)} clusters are named for {n} items")
    known: dict[Any, int] = {}
    return np.array(
        [
            known.setdefault(("alone", i) if name is None else ("named", name), len(known))
            for i, name in enumerate(clusters)
        ],
        dtype=np.int64,
    )


def standard_error(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """The standard error of a mean of independent clusters of items; NaN where there is only one.

        sqrt(G / (G - 1) * sum over clusters of (sum over its items of (x - mean))^2) / n

    which for clusters of one item is s / sqrt(n). Miller, Adding Error Bars to Evals, arXiv 2411.00640, appendix A,
    with the correction for a finite number of clusters G.
    """
    x = _finite(values)
    number = cluster_numbers(clusters, len(x))
    groups = int(number.max()) + 1
    if groups < 2:
        return math.nan
    sums = np.bincount(number, weights=x - x.mean(), minlength=groups)
    return math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / len(x)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share; right near 0 and 1 and for few items, where mean ± 2 s is not.

    Wilson, Probable Inference, JASA 22 (1927). `n` need not be whole: see `share_interval`.
    """
    _check_level(level)
    if not n > 0 or not 0 <= successes <= n:
        raise UserError(f"{successes:g} of {n:g} is not a share")
    z = float(norm.ppf((1 + level) / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the two terms cancel up to rounding.
    return (0.0 if successes == 0 else max(0.0, middle - half), 1.0 if successes == n else min(1.0, middle + half))


def share_interval(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """Wilson's interval of the mean of zeros and ones, for as many items as the clusters are worth.

    They are worth n / (their standard error / the independent one)^2 (Korn and Graubard, Survey Methodology 24, 1998),
    never more than n; where all items agree nothing tells how alike the clusters are inside, and each counts as one.
    """
    x = _finite(values)
    if not np.isin(x, (0.0, 1.0)).all():
        raise UserError("a share is of zeros and ones")
    n, share = len(x), float(x.mean())
    number = cluster_numbers(clusters, n)
    groups = int(number.max()) + 1
    worth = float(n)
    if groups < n:
        error = standard_error(x, clusters)
        worth = float(groups) if not error > 0 else min(n, max(1.0, share * (1 - share) / error**2))
    return wilson(share * worth, worth, level)


def bootstrap_ratio(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap over clusters of sum(numerator) / sum(denominator).

    As many clusters as there are, are drawn with replacement, and the ratio is computed of each draw. Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    _check_level(level)
    above, below = _finite(numerator), _finite(denominator)
    if len(above) != len(below):
        raise UserError(f"a ratio of {len(above)} items to {len(below)}")
    number = cluster_numbers(clusters, len(above))
    groups = int(number.max()) + 1
    above = np.bincount(number, weights=above, minlength=groups)
    below = np.bincount(number, weights=below, minlength=groups)
    # The bit generator is named: its stream is fixed, whatever numpy's default becomes.
    random = np.random.Generator(np.random.PCG64(seed))
    draws = np.empty(resamples)
    step = max(1, _AT_ONCE // groups)
    for start in range(0, resamples, step):
        chosen = random.integers(0, groups, size=(min(step, resamples - start), groups))
        sizes = below[chosen].sum(1)
        if not sizes.all():
            raise UserError("division by zero")
        draws[start : start + step] = above[chosen].sum(1) / sizes
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    return low, high


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile bootstrap over clusters of the mean of the items; see `bootstrap_ratio`."""
    return bootstrap_ratio(values, np.ones(len(values)), clusters, seed=seed, level=level, resamples=resamples)


def minimum_detectable_effect(error: float, *, level: float = 0.95, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test at `level` finds with probability `power`.

    `error` is the standard error of the difference. (z of the level + z of the power) * error, by the normal
    approximation; Miller, arXiv 2411.00640, section 5.
    """
    _check_level(level)
    return float(norm.ppf((1 + level) / 2) + norm.ppf(power)) * error


def items_needed(difference: float, variance: float, alpha: float) -> float:
    """The items of which a one-sided test at `alpha` finds a mean `difference` with 80 % probability.

    `variance` is that of one item. ((z of 1 - alpha + z of the power) / difference)^2 * variance, by the normal
    approximation.
    """
    return float((norm.ppf(1 - alpha) + norm.ppf(POWER)) / difference) ** 2 * variance


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of one family, adjusted. Holm, Scandinavian Journal of Statistics 6 (1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(p, dtype=np.float64)[order] * np.arange(len(order), 0, -1))
    result = np.empty(len(order))
    result[order] = np.minimum(adjusted, 1.0)
    return result.tolist()


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"an interval's level lies between 0 and 1, not at {level:g}")


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise UserError("no items: nothing can be said of their mean")
    if not np.isfinite(x).all():
        raise UserError("an item's value is not a finite number")
    return x
