"""The best of k seeds: an improvement that comes from trying often.

Two methods are the same: accuracy 70 %, and another training seed changes it by a point (standard deviation). One is
run once, the other k times, and its best run is tested against the one, over 1,000 items, one-sided at 5 %. The test
knows of the items' chance only. It errs in 9 % of cases with one seed each, since seeds vary too, and in about half of
them with the best of 20. The Leaderboard Illusion (arXiv 2504.20879) tells of up to 27 private variants of a model
before the one that was shown.

The remedy is the last line: all seeds of both sides, with items and seeds as sources of chance, as `inazuma compare`
takes them. It finds nothing more often than it could, and that is the price of not being fooled.
"""

from __future__ import annotations

import numpy as np
from lesson import Lesson, Statement, show

from inazuma.evaluate.statistics import compare
from inazuma.runs.intervals import wilson

ACCURACY, SEED_SD, ITEMS = 0.70, 0.01, 1000
TRIALS, COMPARED = 20_000, 300
KS = (1, 3, 5, 10, 20)


def false_improvements(k: int, random: np.random.Generator) -> int:
    """In how many of `TRIALS` studies the best of k runs is "significantly" better than one run of the same method."""
    runs = random.binomial(ITEMS, random.normal(ACCURACY, SEED_SD, size=(TRIALS, k + 1))) / ITEMS
    ours, theirs = runs[:, :k].max(1), runs[:, k]
    error = np.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / ITEMS)
    return int((ours - theirs > 1.645 * error).sum())


def all_seeds(k: int, random: np.random.Generator) -> int:
    """The same, of `COMPARED` studies that run k seeds of both sides and compare them all."""
    wrong = 0
    for i in range(COMPARED):
        right = random.random((2, k, ITEMS)) < random.normal(ACCURACY, SEED_SD, size=(2, k, 1))
        wrong += compare(right[0], right[1], margin=0.01, seed=i).verdict == "better"
    return wrong


def lesson() -> Lesson:
    random = np.random.Generator(np.random.PCG64(0))
    counts = {k: false_improvements(k, random) for k in KS}
    rates = {k: 100 * count / TRIALS for k, count in counts.items()}
    honest = all_seeds(5, random)

    def errs(id: str, text: str, count: int, n: int) -> Statement:
        low, high = wilson(count, n)
        around = (100 * low, 100 * high)
        return Statement(id=id, text=text, stated="5", found=100 * count / n, direction="at most", interval=around)

    return Lesson(
        title="False improvements where nothing differs, per cent (5 are promised)",
        columns=("best of", "errs in"),
        rows=[(k, f"{rate:.1f}") for k, rate in rates.items()] + [("all of 5", f"{100 * honest / COMPARED:.1f}")],
        statements=(
            Statement(
                id="better",
                text="Our method is better by at least one point (the best of five seeds, p < 0.05).",
                stated="1",
                found=0.0,  # both are the same method
                direction="at least",
                rules=(("V14", "the best of 5 runs is compared with the only run of the other side"),),
            ),
            errs("one-seed", "One seed each, tested over the items, errs in at most 5 % of cases.", counts[1], TRIALS),
            errs("best-of-five", "The best of five seeds errs in at most 5 % of cases.", counts[5], TRIALS),
            errs(
                "all-seeds", "All five seeds of both, items and seeds as chance, err in at most 5 %.", honest, COMPARED
            ),
        ),
        notes=("the rates depend on how much a seed changes: here one point of accuracy",),
    )


if __name__ == "__main__":
    show(lesson())
