"""Scores of samples, and their formulas: never one number alone.

A score is given as scored, of completed answers only, and as the worst and best that it could be, whatever the answers
that were cut off would have been. Completed ones alone are biased, since long answers are cut more often and belong to
harder items; the bounds are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy.stats import norm

from inazuma.errors import UserError
from inazuma.runs.formulas import Figures, formula
from inazuma.runs.intervals import bootstrap_mean, cluster_numbers, minimum_detectable_effect, share_interval

ANSWERED = ("correct", "wrong", "truncated", "no_answer", "refused")
"""Outcomes of items that were put to the model and came back."""
COMPLETED = ("correct", "wrong", "no_answer", "refused")
"""Outcomes of answers that the model itself brought to an end."""
Part = Literal["as_scored", "completed", "worst", "best"]
SEED = 0


def answered(figures: Figures, record: str, task: str) -> list[dict[str, Any]]:
    """The task's samples that came back; a `UserError` where there are none, or one has no score."""
    lines = [line for line in figures.lines(record) if line.get("task") == task and line.get("outcome") in ANSWERED]
    if not lines:
        raise UserError(f"{record}: no sample of {task!r} came back")
    for line in lines:
        if isinstance(line.get("score"), bool) or not isinstance(line.get("score"), int | float):
            raise UserError(f"{record}: {task}: the sample {line.get('id')!r} has no score")
    return lines


@formula
def sample_score(figures: Figures, *, record: str, task: str, part: Part) -> float:
    """The mean score of a task's samples that came back.

    "as_scored": all of them; "completed": those that were not cut off; "worst" and "best": all, with 0 and 1 for those
    that were cut off.
    """
    lines = answered(figures, record, task)
    if part == "completed":
        lines = [line for line in lines if line["outcome"] in COMPLETED]
        if not lines:
            raise UserError(f"{record}: no answer of {task!r} was completed")
    elif part not in ("as_scored", "worst", "best"):
        raise UserError(f"unknown part {part!r}")
    instead = {"worst": 0.0, "best": 1.0}.get(part)
    scores = [
        instead if instead is not None and line["outcome"] == "truncated" else float(line["score"]) for line in lines
    ]
    return math.fsum(scores) / len(scores)


def _scores(lines: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[str | None]]:
    return np.array([line["score"] for line in lines], dtype=np.float64), [line.get("cluster") for line in lines]


@formula
def sample_interval(figures: Figures, *, record: str, task: str, level: float = 0.95) -> list[float]:
    """[low, high] of a score from 0 to 1, as scored: Wilson's for zeros and ones, else a bootstrap over clusters."""
    scores, clusters = _scores(answered(figures, record, task))
    if np.isin(scores, (0.0, 1.0)).all():
        return list(share_interval(scores, clusters, level))
    if int(cluster_numbers(clusters, len(clusters)).max()) == 0:
        return [0.0, 1.0]  # one cluster tells nothing of the spread
    return list(bootstrap_mean(scores, clusters, seed=SEED, level=level))


@formula
def sample_mde(figures: Figures, *, record: str, task: str) -> float:
    """The true distance from a fixed value, such as chance, that the score shows with 80 % probability at 5 %.

    The standard error is taken from the interval's width, which is not 0 where all items agree.
    """
    low, high = sample_interval(figures, record=record, task=task)
    return minimum_detectable_effect((high - low) / float(2 * norm.ppf(0.975)))


@formula
def sample_count(figures: Figures, *, record: str, task: str, outcome: str | None = None) -> int:
    """How many of a task's samples have an outcome; without one, how many came back."""
    wanted = ANSWERED if outcome is None else (outcome,)
    return sum(line.get("task") == task and line.get("outcome") in wanted for line in figures.lines(record))


@formula
def sample_clusters(figures: Figures, *, record: str, task: str) -> int:
    """How many independent clusters the samples that came back are of."""
    _, clusters = _scores(answered(figures, record, task))
    return int(cluster_numbers(clusters, len(clusters)).max()) + 1


@formula
def sample_mean(figures: Figures, *, record: str, task: str, column: str) -> float:
    """The mean of a column over the task's samples that came back and have it."""
    values = [line[column] for line in answered(figures, record, task) if line.get(column) is not None]
    if not values:
        raise UserError(f"{record}: no sample of {task!r} has {column!r}")
    return math.fsum(values) / len(values)
