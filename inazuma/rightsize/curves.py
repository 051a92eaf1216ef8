"""Learning curves: the rungs that learn from labels again, on fewer of them, and how many would reach the best."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import PARTIAL, read_json, write_json
from inazuma.rightsize.climb import FACTS, quality
from inazuma.rightsize.rungs import prepare
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.task import Task
from inazuma.runs.lines import read_lines

CURVES = "curves.json"
_CHEAP = ("majority", "tfidf", "embedding")
"""Rungs that train in seconds."""
_COSTLY = {"scratch": 2, "pretrained": 2, "lora": 2}
"""How many of the label counts, the largest, others are trained on: about what their tuning took, once more. A line
through errors needs three points, of which the training on all labels is one."""


def learning_curves(task: Task, splits: Splits, out: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """[labels, quality on the test split] of each rung that learns, with its tuned configuration; kept in
    curves.json."""
    if (out / CURVES).exists():
        return read_json(out / CURVES)
    curves: dict[str, list[list[float]]] = {}
    for name in names:
        if name not in _CHEAP and name not in _COSTLY:
            continue
        folder = out / "rungs" / name
        trials = [trial for trial in read_json(folder / FACTS)["trials"] if "validation" in trial]
        choice = max(trials, key=lambda trial: trial["validation"])["choice"]
        train = splits["train"]
        counts = [count for count in task.curve if count < len(train)]
        points = []
        for count in counts[-_COSTLY.get(name, len(counts)) :]:
            plan = prepare(name, task, Splits({**splits.parts, "train": _spread(train, count)}), out)
            try:
                with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as work, plan.open:
                    points.append([count, quality(task, plan.fit(choice, Path(work) / "model"), splits["test"])])
            except ValueError:  # too few labels to train on at all
                continue
        scores = [line["score"] for line in read_lines(folder / SAMPLES) if line["task"] == "test"]
        curves[name] = [*points, [len(train), sum(scores) / len(scores)]]
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
