"""The statistics that rules recompute: from samples, never from what was reported."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats

from inazuma.evaluate.audit.log import NOT_EVIDENCE, Sample


def scored(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with a score."""
    return [sample for sample in samples if sample.score is not None]


def judged(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with a score whose outcome is evidence about the model."""
    return [sample for sample in scored(samples) if sample.outcome not in NOT_EVIDENCE]


def values(samples: Sequence[Sample]) -> np.ndarray:
    return np.array([sample.score for sample in scored(samples)], dtype=np.float64)


def binary(x: np.ndarray) -> bool:
    return bool(np.isin(x, (0.0, 1.0)).all())


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion. Wilson, JASA 22 (1927)."""
    interval = stats.binomtest(round(successes), n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def naive_error(x: np.ndarray) -> float:
    """Standard error of the mean of independent items (n − 1 in the denominator of the variance)."""
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan


def clustered_error(x: np.ndarray, clusters: Sequence[str]) -> float:
    """Standard error of the mean of items in clusters, with the correction G / (G − 1) for G clusters.

    Miller, Adding Error Bars to Evals (2411.00640), section 2.2.
    """
    sums: dict[str, float] = defaultdict(float)
    for residual, cluster in zip(x - x.mean(), clusters, strict=True):
        sums[cluster] += residual
    count = len(sums)
    if count < 2:
        return math.nan
    return math.sqrt(math.fsum(s * s for s in sums.values()) * count / (count - 1)) / len(x)


def aligned(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of the items (and repeats) that both have, in one order, and how many items only one of them has."""
    ours, theirs = ({sample.key: sample.score for sample in scored(s)} for s in (a, b))
    shared = sorted(ours.keys() & theirs.keys())
    alone = len(ours.keys() ^ theirs.keys())
    return np.array([ours[key] for key in shared]), np.array([theirs[key] for key in shared]), alone


def paired_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of no difference: exact McNemar for 0/1 scores, else the paired t test."""
    difference = x - y
    if not difference.any():
        return 1.0
    if binary(x) and binary(y):
        return float(stats.binomtest(int((difference > 0).sum()), int((difference != 0).sum())).pvalue)
    return float(stats.ttest_rel(x, y).pvalue)


def unpaired_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the z test that treats both score lists as independent."""
    error = math.hypot(naive_error(x), naive_error(y))
    return float(2 * stats.norm.sf(abs(x.mean() - y.mean()) / error)) if error > 0 else 1.0


def detectable(difference: np.ndarray, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true difference that a paired test of these items finds with `power`."""
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    return float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)) * spread / math.sqrt(len(difference))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values. Holm, Scandinavian Journal of Statistics 6 (1979)."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1.0)
    return result.tolist()


def percent(x: float) -> str:
    return f"{100 * x:.1f} %"
