"""The claimed comparisons with the items of both sides, where the logs are here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inazuma.evaluate.audit.declared import Comparison
from inazuma.evaluate.audit.log import Study, Task
from inazuma.evaluate.audit.measure import aligned


@dataclass(frozen=True)
class Pair:
    """A claim; `x` and `y` are the scores of `a` and `b` on the items that both have, `alone` how many one lacks."""

    name: str
    claim: Comparison
    x: np.ndarray | None
    y: np.ndarray | None
    alone: int


def pairs(study: Study) -> Iterator[Pair]:
    for claim in study.declared.comparisons:
        name = f"{claim.a} against {claim.b}: {claim.task}"
        ours, theirs = (_task(study, which, claim.task) for which in (claim.a, claim.b))
        if ours is None or theirs is None or not ours.samples or not theirs.samples:
            yield Pair(name, claim, None, None, 0)
        else:
            yield Pair(name, claim, *aligned(ours.samples, theirs.samples))


def _task(study: Study, which: str, name: str) -> Task | None:
    for log in study.logs:
        if which in (log.name, log.path.stem, log.model):
            return next((task for task in log.tasks if task.name == name), None)
    return None
