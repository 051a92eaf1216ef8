"""A saturated needle test: a reader that understands nothing gets everything right.

"Accuracy held" is often shown with a needle in a haystack: one number in a long text, 100 % before and after. The
reader below returns the first five-digit number that it sees, whatever the question. At 4K tokens it scores 100 % on
single-key recall, as a perfect reader does, and fails wherever the right number has to be told from others. A test at
its ceiling cannot tell the two apart, and so says nothing about a loss. Scores of 0.998 with "stderr: N/A" are shown
for new kernels (sglang, pull request 39976, beside another test); over 59 models, finding needles does not predict
other long-context tasks (HELMET, arXiv 2410.02694).

And 50 of 50 is no proof of "no loss" either: with 50 items, 7 points may be lost and none be seen.
"""

from __future__ import annotations

import re

from lesson import Lesson, Statement, show

from inazuma.evaluate.statistics import tango
from inazuma.evaluate.tasks.counting import Counting
from inazuma.evaluate.tasks.haystack import LongContextTask
from inazuma.evaluate.tasks.recall import MultiKeyRecall, SingleKeyRecall
from inazuma.evaluate.tasks.variable_tracking import VariableTracking
from inazuma.runs.intervals import wilson

LENGTH, ITEMS = 4096, 50


def first_number(prompt: str) -> str:
    """All that this reader can do."""
    found = re.search(r"\b\d{5}\b", prompt)
    return found.group() if found else ""


def right(task: LongContextTask, seed: int = 0) -> int:
    """How many of the task's items the reader gets right; a perfect reader's witness passes the same judge."""
    items = task.items(seed)
    assert all(task.judge(item.witness, item.target).score == 1 for item in items)
    return sum(int(task.judge(first_number(item.prompt), item.target).score) for item in items)


def lesson() -> Lesson:
    tasks = [kind(LENGTH, ITEMS) for kind in (SingleKeyRecall, MultiKeyRecall, VariableTracking, Counting)]
    counts = {task.family: right(task) for task in tasks}
    shares = {family: tuple(100 * end for end in wilson(n, ITEMS)) for family, n in counts.items()}
    low, high = (100 * end for end in tango(0, 0, ITEMS))  # all items right on both sides: none differs
    worst = min(counts, key=counts.__getitem__)
    needle = counts["single-key-recall"]
    return Lesson(
        title=f"Right answers at {LENGTH // 1024}K tokens, per cent of {ITEMS} items",
        columns=("task", "perfect reader", "first number", "95 % interval"),
        rows=[
            (family, 100, round(100 * n / ITEMS), f"{shares[family][0]:.0f}–{shares[family][1]:.0f}")
            for family, n in counts.items()
        ],
        statements=(
            Statement(
                id="needle",
                text="The reader keeps its accuracy over long texts: 100 % of the needles are found.",
                stated="100",
                found=100 * needle / ITEMS,
                rules=(
                    ("V18", "one kind of needle is all that was asked"),
                    ("V24", f"at the ceiling: who answers with the first number scores {100 * needle / ITEMS:.0f} %"),
                ),
            ),
            Statement(
                id="no-loss",
                text="50 of 50 before and after: at most 1 point is lost.",
                stated="1",
                found=0.0,
                direction="at most",
                interval=(low, high),
            ),
            Statement(
                id="worst-task",
                text="It keeps its accuracy on the other tasks: at least 85 % on the worst of them.",
                stated="85",
                found=100 * counts[worst] / ITEMS,
                direction="at least",
                interval=shares[worst],
                no_effect=100 / 8,  # what guessing among the keys gets
            ),
        ),
        notes=("the pull request was read; HELMET is quoted second-hand",),
    )


if __name__ == "__main__":
    show(lesson())
