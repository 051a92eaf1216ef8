"""Items that have no solution count as failures."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.puzzles import solvable

NUMBER = "V04"
TITLE = "Items without a solution"
SOURCE = (
    "River Crossing in The Illusion of Thinking (Shojaee et al. 2025): from N = 6 on a boat for 3 cannot do it, and "
    "failing was counted as failure (arXiv 2507.01231)"
)
FIX = "admit an item only with a witness, a solution that a solver found; what has none is invalid, not wrong"


def check(study: Study) -> Iterator[Word]:
    for _, task, name in study.tasks():
        if not task.samples:
            continue
        bad: dict[str, str] = {}
        decided = 0
        for sample in task.samples:
            known = solvable(sample.question or sample.prompt or "")
            decided += known is not None or sample.witness is not None or sample.outcome == "invalid_item"
            if sample.outcome == "invalid_item":
                continue
            if known is not None and not known[1]:
                bad[sample.item] = f"{known[0]} has no solution"
            elif sample.witness is False:
                bad[sample.item] = "the generator found no solution"
        if bad:
            first = next(iter(bad))
            text = f"{len(bad)} of {len(task.samples)} items have no solution: {some(list(bad))}; {first}: {bad[first]}"
            yield Found(name, text, tuple(bad))
        elif decided < len(task.samples):
            missing = len(task.samples) - decided
            yield Undecided(
                name, f"{missing} of {len(task.samples)} items carry no witness and are no puzzle known here"
            )
