"""Learning curves of a ladder's rungs, as formulas over the scores that each reached with so many training labels.

A rung's record has a line for each number of training labels, fewest first: `labels`, and `scores`, those of the items
of the test split. The last is the rung itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from inazuma.errors import UserError
from inazuma.runs.formulas import Figures, formula

_FARTHEST = 100
"""How many times the labels there are an extrapolation may reach."""


class Parity(NamedTuple):
    """With how many labels a rung does as well as is asked."""

    labels: int
    """0 where that is out of sight."""
    how: Literal["measured", "extrapolated", "out of sight"]


def labels_to_parity(points: Sequence[tuple[int, float]], aim: float) -> Parity:
    """The labels at which a curve of (labels, quality) reaches `aim`.

    Where the last point reaches it, the first that did. Else where its error, if it goes on falling as a power of the
    labels, will have: a guess from a straight line in logarithms through the last four points, no promise. Out of sight
    if there are fewer than three of them, the error does not fall, or that is beyond a hundred times the labels there
    are.
    """
    last = points[-1][0]
    if points[-1][1] >= aim:
        return Parity(next(count for count, reached in points if reached >= aim), "measured")
    fit = [(count, 1 - reached) for count, reached in points if reached < 1][-4:]
    if len(fit) >= 3 and aim < 1:
        slope, height = np.polyfit(np.log([count for count, _ in fit]), np.log([error for _, error in fit]), 1)
        needed = math.exp(min((math.log(1 - aim) - height) / slope, 700.0)) if slope < 0 else math.inf
        if needed <= _FARTHEST * last:
            # The last point is below the aim, whatever the line through it says.
            return Parity(max(math.ceil(needed), last + 1), "extrapolated")
    return Parity(0, "out of sight")


@formula
def learning_curve(figures: Figures, *, record: str) -> list[list[Any]]:
    """[labels, mean score] of each line."""
    points = []
    for labels, scores in figures.table(record, ["labels", "scores"]):
        if not scores:
            raise UserError(f"{record}: no scores with {labels} labels")
        points.append([labels, math.fsum(scores) / len(scores)])
    return points


@formula
def parity(
    figures: Figures, *, curve: str, of: Sequence[str], margin: float, part: Literal["labels", "how"]
) -> int | str:
    """`labels_to_parity` of the curve that is the figure `curve`, with the greatest of the figures `of`, less the
    margin, as what is to be reached."""
    aim = max(float(figures.figure(name)) for name in of) - margin
    return getattr(labels_to_parity(figures.figure(curve), aim), part)
