"""Is B better than A? Two models on the same items, decided pairwise.

The answers of two models to one item go together, so what is tested is the difference within items, not the difference
of two means. Clusters of items are the units that are independent. Where a model was trained with several seeds, the
seeds are units as well: another seed is another model, and a difference that does not survive that is none.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm, t

from inazuma.errors import UserError
from inazuma.runs.intervals import (
    Interval,
    bootstrap_mean,
    cluster_numbers,
    holm,
    minimum_detectable_effect,
    standard_error,
)

Test = Literal["exact McNemar", "sign flips", "items and seeds"]
FLIPS = 9999
"""Random sign flips; with the observed signs they make 10000."""
_EXACT = 13
"""Up to so many clusters all 2^G sign flips are computed."""


@dataclass(frozen=True)
class Comparison:
    """B against A on the same items. Differences are B - A, in the score's unit; `better` says which way is up."""

    n: int
    clusters: int
    seeds: tuple[int, int]
    """Training seeds of A and of B. Where one of them is 1, nothing is known about what another seed would change."""
    higher_is_better: bool
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    """Of the difference, at 1 - alpha."""
    standard_error: float
    test: Test
    p_value: float
    """Two-sided, of no difference."""
    adjusted_p: float
    """Holm's, over the family the comparison belongs to; `p_value` for one alone."""
    margin: float
    """Differences up to this size do not matter: stated, not estimated."""
    equivalence_p: float
    """Of a difference beyond the margin (two one-sided tests)."""
    minimum_detectable_effect: float
    """The true difference that so many items show with 80 % probability."""
    alpha: float
    seeds_error: float
    """The part of the standard error that more items do not lessen."""
    family: int = 1
    """How many comparisons `adjusted_p` was adjusted for."""

    @property
    def verdict(self) -> str:
        """Of B: "better", "worse", "equivalent", or "cannot tell: …"."""
        if self.adjusted_p <= self.alpha:
            return "better" if (self.difference > 0) == self.higher_is_better else "worse"
        if self.equivalence_p <= self.alpha:
            return "equivalent"
        more = self.more_items
        if more is None:
            return "cannot tell: more items would not do, more training seeds would"
        return f"cannot tell: about {more} more items"

    @property
    def more_items(self) -> int | None:
        """About how many items more give a verdict with 80 % probability, should the difference be what it seems.

        None where the seeds alone leave too much open. Two digits: it is a plan, and the difference an estimate.
        """
        size = abs(self.difference)
        targets = [size / float(norm.ppf(1 - self.alpha / (2 * self.family)) + norm.ppf(0.8))]
        if size < self.margin:
            targets.append((self.margin - size) / float(norm.ppf(1 - self.alpha) + norm.ppf(0.9)))
        allowed = max(targets) ** 2 - self.seeds_error**2
        if not allowed > 0:
            return None
        # Without any spread in sight: as much as one item would make that differs.
        spread = max(self.standard_error**2 - self.seeds_error**2, (max(size, self.margin) / self.n) ** 2)
        if math.isinf(spread):
            spread = max(size, self.margin) ** 2
        more = max(1, math.ceil(self.n * (spread / allowed - 1)))
        unit = 10 ** max(0, len(str(more)) - 2)
        return -(-more // unit) * unit


def compare(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    margin: float,
    higher_is_better: bool = True,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compares the scores of two models on the same items.

    Args:
        a, b: `[n]`, or `[seeds, n]` with one row for each training seed; column i is the same item in both.
        clusters: `[n]`, what is not independent.
        margin: a difference up to this size does not matter.
        seed: of the random sign flips and of the bootstrap.

    With one seed a side, zeros and ones of independent items are decided by McNemar's exact test (Psychometrika 12,
    1947) with Tango's score interval; all else by flipping the signs of the clusters' differences at random (Fisher;
    see Good, Permutation, Parametric and Bootstrap Tests, 2005, section 3.1) with a bootstrap interval. With several
    seeds on a side the variance of the difference is that over the items plus that over the seeds of each side, and is
    tested by t with Satterthwaite's degrees of freedom. The seeds' part holds a little of the items' too, so that it
    errs towards finding nothing.
    """
    rows_a, rows_b = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a, b))
    if rows_a.ndim != 2 or rows_b.ndim != 2 or rows_a.shape[1] != rows_b.shape[1] or not rows_a.size or not rows_b.size:
        raise UserError(f"scores of shapes {list(rows_a.shape)} and {list(rows_b.shape)} are not of the same items")
    if not margin > 0:
        raise UserError(f"the margin must be above 0, got {margin:g}")
    d = rows_b.mean(0) - rows_a.mean(0)
    n, number = len(d), cluster_numbers(clusters, len(d))
    groups = int(number.max()) + 1
    error, difference = standard_error(d, clusters), float(d.mean())
    error = math.inf if math.isnan(error) else error
    binary = groups == n and all(np.isin(x, (0.0, 1.0)).all() for x in (rows_a, rows_b))
    seeds = (len(rows_a), len(rows_b))
    seeds_error = 0.0
    if seeds != (1, 1):
        test: Test = "items and seeds"
        parts = [(error**2, groups - 1)]
        parts += [(float(x.mean(1).var(ddof=1)) / len(x), len(x) - 1) for x in (rows_a, rows_b) if len(x) > 1]
        seeds_error = math.sqrt(sum(part for part, _ in parts[1:]))
        error, p, equivalence, interval = _by_t(difference, parts, margin, alpha)
    elif binary:
        test = "exact McNemar"
        won, lost = int((d > 0).sum()), int((d < 0).sum())
        p = mcnemar(won, lost)
        equivalence = max(_tango_p(won, lost, n, -margin), _tango_p(lost, won, n, -margin))
        interval = tango(won, lost, n, 1 - alpha)
    else:
        test = "sign flips"
        sums = np.bincount(number, weights=d, minlength=groups)
        p = sign_flips(sums, seed=seed)
        alone = groups < 2  # one cluster tells nothing of the spread
        interval = (-math.inf, math.inf) if alone else bootstrap_mean(d, clusters, seed=seed, level=1 - alpha)
        equivalence = tost(difference, error, groups, margin)
        if not error > 0 and all((x >= 0).all() and (x <= 1).all() for x in (rows_a, rows_b)):
            # Scores that never differed by more may still differ by 1 in a cluster not seen: as exact pairs would say.
            equivalence = max(equivalence, _tango_p(0, 0, groups, -margin))
    return Comparison(
        n=n,
        clusters=groups,
        seeds=seeds,
        higher_is_better=higher_is_better,
        mean_a=float(rows_a.mean()),
        mean_b=float(rows_b.mean()),
        difference=difference,
        interval=interval,
        standard_error=error,
        test=test,
        p_value=p,
        adjusted_p=p,
        margin=margin,
        equivalence_p=equivalence,
        minimum_detectable_effect=minimum_detectable_effect(error, level=1 - alpha),
        alpha=alpha,
        seeds_error=seeds_error,
    )


def mcnemar(won: int, lost: int) -> float:
    """McNemar's exact two-sided p-value of items that only one of the two got right."""
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def sign_flips(differences: np.ndarray, *, seed: int, flips: int = FLIPS) -> float:
    """Two-sided p-value of independent differences `[G]` that are as likely to be negative as positive.

    All 2^G signs for few of them, else random ones, of which the observed signs are one (Phipson and Smyth, 2010).
    """
    groups = len(differences)
    # Sums that are equal but for rounding count as equal.
    observed = abs(float(differences.sum())) * (1 - 1e-9)
    if groups <= _EXACT:
        signs = 1 - 2 * ((np.arange(2**groups)[:, None] >> np.arange(groups)) & 1)
        return float((np.abs((signs * differences).sum(1)) >= observed).mean())
    random = np.random.Generator(np.random.PCG64(seed))
    # The sum under flipped signs is the whole sum less twice what was flipped.
    beyond, step = 0, max(1, (1 << 20) // groups)
    total = differences.sum()
    for start in range(0, flips, step):
        flipped = random.integers(0, 2, size=(min(step, flips - start), groups), dtype=np.uint8)
        sums = total - 2 * np.where(flipped, differences, 0.0).sum(1)
        beyond += int((np.abs(sums) >= observed).sum())
    return (beyond + 1) / (flips + 1)


def tost(difference: float, error: float, groups: int, margin: float) -> float:
    """The p-value of two one-sided t tests of a difference beyond ± margin (Schuirmann, 1987).

    Where all clusters differ by the same nothing is known of their spread: the chance of that, 2^-G, if every second
    difference lay beyond the margin.
    """
    if groups < 2:
        return 1.0
    if not error > 0:
        return 0.5**groups if abs(difference) < margin else 1.0
    return float(t.sf((margin - abs(difference)) / error, groups - 1))


def tango(won: int, lost: int, n: int, level: float = 0.95) -> Interval:
    """Tango's score interval of (won - lost) / n, a difference of paired shares (Statistics in Medicine 17, 1998)."""
    z = float(norm.ppf((1 + level) / 2))
    middle = (won - lost) / n
    edge = 1 - 1e-12
    low = brentq(lambda at: _tango_z(won, lost, n, at) - z, -edge, middle) if middle > -edge else -1.0
    high = brentq(lambda at: _tango_z(won, lost, n, at) + z, middle, edge) if middle < edge else 1.0
    return low, high


def _tango_z(won: int, lost: int, n: int, at: float) -> float:
    """The score statistic of a true difference `at`; grows with what was observed."""
    a = 2 * n
    b = -won - lost + (2 * n - won + lost) * at
    c = -lost * at * (1 - at)
    # The share of items that only A gets right, at its likeliest for that difference.
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * share + at * (1 - at))
    return (won - lost - n * at) / math.sqrt(variance) if variance > 0 else 0.0


def _tango_p(won: int, lost: int, n: int, at: float) -> float:
    """One-sided: of a true difference of at most `at`. Beyond a whole share there is none."""
    return float(norm.sf(_tango_z(won, lost, n, at))) if at > -1 else 0.0


def _by_t(
    difference: float, parts: list[tuple[float, int]], margin: float, alpha: float
) -> tuple[float, float, float, Interval]:
    """(standard error, p-value, equivalence p-value, interval) from variances and their degrees of freedom."""
    variance = sum(part for part, _ in parts)
    if not 0 < variance < math.inf:
        return math.sqrt(variance), 1.0, 1.0, (-math.inf, math.inf)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if degrees)
    error = math.sqrt(variance)
    p = float(2 * t.sf(abs(difference) / error, freedom))
    half = float(t.ppf(1 - alpha / 2, freedom)) * error
    equivalence = float(t.sf((margin - abs(difference)) / error, freedom))
    return error, p, equivalence, (difference - half, difference + half)


def as_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons as one family: `adjusted_p` by Holm."""
    adjusted = holm([one.p_value for one in comparisons])
    family = len(comparisons)
    return [replace(one, adjusted_p=p, family=family) for one, p in zip(comparisons, adjusted, strict=True)]
