"""River Crossing: puzzles without a solution, counted as failures.

"The Illusion of Thinking" (Shojaee et al., arXiv 2506.06941, June 2025) lets models bring N actors and their agents
over a river and reports that all of them collapse as N grows. A comment (Lawsen, arXiv 2506.09250) answered that with
a boat for three the puzzle has no solution from N = 6 on. A search of all states takes seconds and settles it, and
settles as well what the comment does not: the sizes below six can be solved, so a failure there needs another reason.

Each item of `inazuma.evaluate.tasks.river_crossing` carries a solver's witness, and none without one is ever asked.
"""

from __future__ import annotations

from lesson import Lesson, Statement, show

from inazuma.evaluate.tasks.river_crossing import brings_over, solve

PAIRS = range(2, 9)
FAILED = (3, 4, 5)
"""Sizes below six at which the paper reports failures: by its text from N = 3 on."""


def fewest(pairs: int, boat: int) -> int | None:
    """The fewest crossings, checked by carrying them out; None where the search proves that there are none."""
    crossings = solve(pairs, boat)
    if crossings is None:
        return None
    assert brings_over(pairs, boat, crossings)
    return len(crossings)


def lesson() -> Lesson:
    found = {boat: {n: fewest(n, boat) for n in PAIRS} for boat in (3, 4)}
    found[2] = {n: fewest(n, 2) for n in PAIRS if n <= 4}
    reached = {boat: max(n for n, least in row.items() if least is not None) for boat, row in found.items()}
    unsolvable = [n for n in PAIRS if n >= 6 and found[3][n] is None]
    solvable_failures = sum(found[2 if n <= 3 else 3][n] is not None for n in FAILED)
    return Lesson(
        title="River Crossing: the fewest crossings",
        columns=("pairs", "boat for 2", "boat for 3", "boat for 4"),
        rows=[[n, *("none" if (x := found[b].get(n, "")) is None else x for b in (2, 3, 4))] for n in PAIRS],
        statements=(
            Statement(
                id="models-fail",
                text="With six pairs and more, and a boat for three, models solve 0 %: a limit of their reasoning.",
                stated="0",
                found=100 * (len(unsolvable) == 0),  # what a solver that never errs scores there
                rules=(("V04", f"no solution exists for {unsolvable} pairs: a perfect solver scores 0 % as well"),),
            ),
            Statement(
                id="boat-for-three",
                text="With a boat for three the puzzle can be solved for at most five pairs.",
                stated="5",
                found=reached[3],
                direction="at most",
            ),
            Statement(
                id="explains-all",
                text="The unsolvable sizes explain the failures: of the failed sizes below six none can be solved.",
                stated="0",
                found=solvable_failures,
                source=("https://arxiv.org/abs/2507.01231", "hinge upon testing unsolvable configurations"),
            ),
            Statement(
                id="boat-for-four",
                text="A boat for four would have made a fair test: solvable for at least eight pairs.",
                stated="8",
                found=reached[4],
                direction="at least",
            ),
        ),
        notes=(
            "searched up to eight pairs; with a boat for four, two pairs over and one back solve any number",
            "at which sizes the paper reports failures is quoted second-hand",
        ),
    )


if __name__ == "__main__":
    show(lesson())
