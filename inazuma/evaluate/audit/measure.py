"""The statistics that rules recompute: from samples, never from what was reported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from inazuma.evaluate.audit.log import NOT_EVIDENCE, Sample
from inazuma.evaluate.statistics import mcnemar
from inazuma.runs.intervals import standard_error


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
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return float(stats.ttest_rel(x, y).pvalue)


def unpaired_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p of the z test that treats both score lists as independent."""
    error = math.hypot(standard_error(x), standard_error(y))
    return float(2 * stats.norm.sf(abs(x.mean() - y.mean()) / error)) if error > 0 else 1.0


def percent(x: float) -> str:
    return f"{100 * x:.1f} %"
