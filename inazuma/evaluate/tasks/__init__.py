"""The tasks that are our own, by name. Every other benchmark comes from lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence

from inazuma.errors import UserError
from inazuma.evaluate.task import Task
from inazuma.evaluate.tasks.counting import Counting
from inazuma.evaluate.tasks.hanoi import Hanoi
from inazuma.evaluate.tasks.haystack import LongContextTask
from inazuma.evaluate.tasks.non_lexical import NonLexicalRecall
from inazuma.evaluate.tasks.recall import MultiKeyRecall, SingleKeyRecall
from inazuma.evaluate.tasks.river_crossing import RiverCrossing
from inazuma.evaluate.tasks.sorting import Sorting
from inazuma.evaluate.tasks.variable_tracking import VariableTracking

FAMILIES: dict[str, type[LongContextTask]] = {
    kind.family: kind
    for kind in (SingleKeyRecall, MultiKeyRecall, NonLexicalRecall, VariableTracking, Counting, Sorting)
}
PUZZLES = {"hanoi": Hanoi, "river-crossing": RiverCrossing}
LONG_CONTEXT = "long-context"
BITS_PER_BYTE = "bits-per-byte"
HARNESS = "lm-eval:"
NAMES = (BITS_PER_BYTE, LONG_CONTEXT, *FAMILIES, *PUZZLES)


def make_tasks(names: Sequence[str], *, lengths: Sequence[int], count: int) -> list[Task]:
    """The tasks of these names: a family once for each length, `long-context` for all families.

    `bits-per-byte` and the harness's are of another kind and not made here. Raises `UserError` for an unknown name.
    """
    made: dict[str, Task] = {}
    for name in names:
        if name in PUZZLES:
            made[name] = PUZZLES[name]()
        elif name == LONG_CONTEXT or name in FAMILIES:
            for family in FAMILIES if name == LONG_CONTEXT else [name]:
                for length in lengths:
                    task = FAMILIES[family](length, count)
                    made[task.name] = task
        else:
            raise UserError(f"unknown task {name!r}; known are {', '.join(NAMES)} and {HARNESS}NAME")
    return list(made.values())
