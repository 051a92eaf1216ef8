"""Learning curves: the rungs that learn from labels again, on fewer of them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import PARTIAL, atomic_file, read_json
from inazuma.rightsize.climb import FACTS, item_scores
from inazuma.rightsize.rungs import prepare
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.task import Task
from inazuma.runs.lines import encode_line, read_lines

CURVE = "curve.jsonl"
CHEAP = ("majority", "tfidf", "embedding")
"""Rungs that train in seconds: on every one of the label counts."""
_FEWEST = 2
"""A line through errors needs three points, of which the training on all labels is one."""


def has_curve(name: str) -> bool:
    """Whether a rung learns from the labels themselves, and can do so again at a price worth paying."""
    return name in (*CHEAP, "scratch", "pretrained", "lora")


def trainings(name: str, tuned: int) -> int | None:
    """On how many of the label counts, the largest, a rung is trained once more whose tuning had `tuned` trials; None
    for all.

    A training on fewer labels takes no longer than a trial on all: with as many of them as trials, `scratch` spends at
    most about what its tuning took, and with two of three trials `pretrained` and `lora` two thirds of that.
    """
    if name in CHEAP:
        return None
    return max(_FEWEST, tuned) if name == "scratch" else _FEWEST


def learning_curve(task: Task, splits: Splits, out: Path, name: str) -> None:
    """Writes `curve.jsonl` into a rung's folder, unless it is there: for each number of labels the scores of the test
    items, by the configuration that tuning chose, and the seconds it took."""
    folder = out / "rungs" / name
    if (folder / CURVE).exists():
        return
    trials = [trial for trial in read_json(folder / FACTS)["trials"] if "validation" in trial]
    choice = max(trials, key=lambda trial: trial["validation"])["choice"]
    train = splits["train"]
    counts = [count for count in sorted(task.curve) if count < len(train)]
    most = trainings(name, len(trials))
    points: list[dict[str, Any]] = []
    for count in counts if most is None else counts[-most:]:
        began = time.perf_counter()
        plan = prepare(name, task, Splits({**splits.parts, "train": _spread(train, count)}), out)
        try:
            with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as work, plan.open:
                scores = item_scores(task, plan.fit(choice, Path(work) / "model"), splits["test"])
        except ValueError:  # too few labels to train on at all
            continue
        points.append({"labels": count, "scores": scores, "seconds": time.perf_counter() - began})
    reached = [line["score"] for line in read_lines(folder / SAMPLES) if line["task"] == "test"]
    points.append({"labels": len(train), "scores": reached, "seconds": 0.0})
    with atomic_file(folder / CURVE, "wb") as handle:
        handle.writelines(encode_line(point) for point in points)


def _spread(examples: list[Any], count: int) -> list[Any]:
    """`count` of the examples, taken at even steps: a smaller sample is not a part of the file."""
    return [examples[i] for i in np.linspace(0, len(examples) - 1, count).round().astype(int)]
