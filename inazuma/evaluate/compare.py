"""Comparing evaluations: their samples aligned item by item, every task decided, all tasks together one family."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.errors import UserError
from inazuma.evaluate.evidence import records_of
from inazuma.evaluate.outcome import SAMPLES, Sample, read_samples
from inazuma.evaluate.report import model_name
from inazuma.evaluate.statistics import Comparison, as_family, compare
from inazuma.runs import Run
from inazuma.runs.lines import read_lines
from inazuma.runs.scores import ANSWERED

MARGIN = 0.02
"""Scores this close do not differ in any way that matters: two points."""
RELATIVE_MARGIN = 0.01
"""Nor do losses that are this close, as a share of A's."""


@dataclass(frozen=True)
class Compared:
    """One task's comparison and what it leaves out."""

    task: str
    unit: str
    """"score", "bits per byte" or "nats per token"."""
    comparison: Comparison
    left_out: int
    """Items that did not come back on one of the sides, in one of its runs."""
    truncated: tuple[int, int]
    """Answers of A and of B that were cut off."""
    bounds: tuple[float, float] | None
    """What B - A could be, whatever those answers would have been; None where none was cut off."""


@dataclass(frozen=True)
class _Side:
    """One model's evaluations, one for each training seed."""

    name: str
    runs: list[Run]

    def samples(self) -> list[dict[str, list[Sample]]]:
        """By task, of each run."""
        found = []
        for run in self.runs:
            tasks: dict[str, list[Sample]] = {}
            for sample in read_samples(run.path) if (run.path / SAMPLES).exists() else []:
                tasks.setdefault(sample.task, []).append(sample)
            found.append(tasks)
        return found


def compare_runs(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    margin: float = MARGIN,
    relative_margin: float = RELATIVE_MARGIN,
    alpha: float = 0.05,
    per_token: bool = False,
) -> list[Compared]:
    """B against A, each the evaluations of one model or of one recipe under several training seeds.

    Tasks that only one side has are not compared, and at least one must be common. `per_token` compares losses per
    token instead of bits per byte.

    Raises:
        UserError: no common task; items that differ, with their number; losses per token of different tokenizers.
    """
    sides = tuple(_Side(", ".join(map(str, paths)), [_ended(path) for path in paths]) for paths in (a, b))
    if not all(side.runs for side in sides):
        raise UserError("compare: each side needs a run")
    compared = _compare_samples(*sides, margin=margin, alpha=alpha)
    compared += _compare_documents(*sides, relative_margin=relative_margin, alpha=alpha, per_token=per_token)
    if not compared:
        raise UserError(f"{sides[0].name} and {sides[1].name}: no task that both have")
    adjusted = as_family([one.comparison for one in compared])
    return [replace(one, comparison=found) for one, found in zip(compared, adjusted, strict=True)]


def _ended(path: Path) -> Run:
    run = Run.open(path)
    config = run.manifest["config"]
    if "model" not in config or "settings" not in config:
        raise UserError(f"{path}: not an evaluation (inazuma eval)")
    if run.manifest["status"] == "running":
        raise UserError(f"{path}: the evaluation has not ended")
    return run


def _common(task: str, rows: Sequence[tuple[str, Mapping[Hashable, Any]]]) -> list[Hashable]:
    """The keys of the first row, which all rows must have; `rows` are (run, key to anything)."""
    first_name, first = rows[0]
    for name, row in rows[1:]:
        only_first, only_other = len(first.keys() - row.keys()), len(row.keys() - first.keys())
        if only_first or only_other:
            raise UserError(
                f"{task}: the items differ: {only_first} of {len(first)} are only in {first_name}, "
                f"{only_other} of {len(row)} only in {name}; evaluate both with the same settings"
            )
    return list(first)


def _compare_samples(a: _Side, b: _Side, *, margin: float, alpha: float) -> list[Compared]:
    tasks_a, tasks_b = a.samples(), b.samples()
    found = []
    for task in [task for task in tasks_a[0] if task in tasks_b[0]]:
        rows = []
        for side, runs in ((a, tasks_a), (b, tasks_b)):
            for run, tasks in zip(side.runs, runs, strict=True):
                by_item = {sample.item: sample for sample in tasks.get(task, [])}
                if len(by_item) < len(tasks.get(task, [])):
                    raise UserError(f"{run.path}: {task}: an item occurs twice")
                rows.append((str(run.path), by_item))
        items = _common(task, rows)
        samples = [[row[item] for item in items] for _, row in rows]
        back = [i for i in range(len(items)) if all(row[i].outcome in ANSWERED for row in samples)]
        if not back:
            continue
        kept = [[row[i] for i in back] for row in samples]
        scores = np.array([[sample.score for sample in row] for row in kept], dtype=np.float64)
        split = len(a.runs)
        clusters = [sample.cluster for sample in kept[0]]
        cut = np.array([[sample.outcome == "truncated" for sample in row] for row in kept])
        low, high = np.where(cut, 0.0, scores), np.where(cut, 1.0, scores)
        found.append(
            Compared(
                task=task,
                unit="score",
                comparison=compare(scores[:split], scores[split:], clusters, margin=margin, alpha=alpha),
                left_out=len(items) - len(back),
                truncated=(int(cut[:split].sum()), int(cut[split:].sum())),
                bounds=(
                    float(low[split:].mean() - high[:split].mean()),
                    float(high[split:].mean() - low[:split].mean()),
                )
                if cut.any()
                else None,
            )
        )
    return found


def _compare_documents(a: _Side, b: _Side, *, relative_margin: float, alpha: float, per_token: bool) -> list[Compared]:
    records = [records_of(run.path) for run in (*a.runs, *b.runs)]
    common = [task for task in records[0] if all(task in one for one in records)]
    if per_token and common:
        _same_tokenizer([*a.runs, *b.runs])
    found = []
    for task in common:
        rows = [
            (str(run.path), {line["document"]: line for line in read_lines(run.path / one[task])})
            for run, one in zip((*a.runs, *b.runs), records, strict=True)
        ]
        documents = _common(task, rows)
        unit = "tokens" if per_token else "bytes"
        size = np.array([rows[0][1][document][unit] for document in documents], dtype=np.float64)
        if any([row[document][unit] for document in documents] != size.tolist() for _, row in rows):
            raise UserError(f"{task}: the documents have other {unit} in one of the runs")
        nats = np.array([[row[document]["nll"] for document in documents] for _, row in rows])
        # Scaled so that the mean over documents is the sum of nats over the sum of bytes.
        losses = nats / (1.0 if per_token else math.log(2)) / size.mean()
        split = len(a.runs)
        found.append(
            Compared(
                task=task,
                unit="nats per token" if per_token else "bits per byte",
                comparison=compare(
                    losses[:split],
                    losses[split:],
                    margin=relative_margin * float(losses[:split].mean()),
                    higher_is_better=False,
                    alpha=alpha,
                ),
                left_out=0,
                truncated=(0, 0),
                bounds=None,
            )
        )
    return found


def _same_tokenizer(runs: Sequence[Run]) -> None:
    names = {run.manifest["config"]["model"].get("files", {}).get("tokenizer.json") for run in runs}
    if len(names) > 1 or None in names:
        raise UserError(
            "losses per token: the tokenizers differ, and so do their tokens; bits per byte can be compared "
            "(leave out --per-token)"
        )


def names(a: Sequence[Path], b: Sequence[Path]) -> tuple[str, str]:
    """What A and B are, for people."""
    return tuple(", ".join(dict.fromkeys(model_name(Run.open(path).manifest) for path in side)) for side in (a, b))
