"""Learning curves: the cheap rungs again, on fewer labels, and about how many labels would reach the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inazuma.files import read_json, write_json
from inazuma.rightsize.climb import FACTS, quality
from inazuma.rightsize.rungs import prepare
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.task import Task

CURVES = "curves.json"
_CHEAP = ("tfidf", "embedding")
"""Rungs that train in seconds; of the others the full training is the only point."""


def learning_curves(task: Task, splits: Splits, out: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """[labels, quality on the test split] of each cheap rung with its tuned configuration; kept in curves.json."""
    if (out / CURVES).exists():
        return read_json(out / CURVES)
    curves: dict[str, list[list[float]]] = {}
    for name in names:
        if name not in _CHEAP:
            continue
        trials = [trial for trial in read_json(out / "rungs" / name / FACTS)["trials"] if "validation" in trial]
        choice = max(trials, key=lambda trial: trial["validation"])["choice"]
        points = []
        for count in [*[n for n in task.curve if n < len(splits["train"])], len(splits["train"])]:
            fewer = Splits({**splits.parts, "train": _spread(splits["train"], count)})
            try:
                model = prepare(name, task, fewer, out).fit(choice, out)
            except ValueError:  # too few labels to train on at all
                continue
            points.append([count, quality(task, model, splits["test"])])
        curves[name] = points
    write_json(out / CURVES, curves)
    return curves


def _spread(examples: list[Any], count: int) -> list[Any]:
    """`count` of the examples, taken at even steps: a smaller sample is not a part of the file."""
    return [examples[i] for i in np.linspace(0, len(examples) - 1, count).round().astype(int)]


def labels_to_parity(points: list[list[float]], aim: float) -> int | None:
    """The labels at which a curve reaches `aim`, if its error goes on falling as a power of the labels; None if it does
    not fall, or beyond a hundred times what there is. A guess from a straight line in logarithms, no promise."""
    if points and points[-1][1] >= aim:
        return int(next(count for count, reached in points if reached >= aim))
    fit = [(count, 1 - reached) for count, reached in points if reached < 1][-4:]
    if len(fit) < 3 or aim >= 1:
        return None
    slope, height = np.polyfit(np.log([count for count, _ in fit]), np.log([error for _, error in fit]), 1)
    if slope >= 0:
        return None
    needed = float(np.exp((np.log(1 - aim) - height) / slope))
    return int(needed) if needed <= 100 * points[-1][0] else None
