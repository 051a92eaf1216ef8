"""Two models, the same items, and a test that ignores it.

The comparison script of lm-evaluation-harness (`scripts/model_comparator.py`, revision 4e7e0d4) divides the difference
of two accuracies by both standard errors, as if each model had answered items of its own, and prints a tick where
p > 0.05. Easy items are easy for both, so most of that chance cancels: the script errs in 0.2 % of cases where 5 %
were allowed, which sounds careful and means that it misses what is there. With 500 items and a true gain of 4 points
it finds the gain in 20 % of cases; a paired test of the same answers finds it in 58 %. "No significant difference" from
it is no evidence of no harm. Pull request 3868 of the same repository shows p = 0.080 become 0.008 on 220 items.

Difficulty is shared: a latent Gaussian with correlation 0.8 decides which items both models get right.
"""

from __future__ import annotations

import numpy as np
from lesson import Lesson, Statement, show
from scipy.stats import norm

from inazuma.evaluate.statistics import mcnemar
from inazuma.runs.intervals import wilson

ITEMS, SHARED, STUDIES = 500, 0.8, 2000


def rejections(a: float, b: float, random: np.random.Generator) -> tuple[int, int, int]:
    """Studies that find a difference between accuracies a and b: unpaired z, paired z, McNemar's exact test."""
    first = random.standard_normal((STUDIES, ITEMS))
    second = SHARED * first + np.sqrt(1 - SHARED**2) * random.standard_normal((STUDIES, ITEMS))
    x, y = first < norm.ppf(a), second < norm.ppf(b)
    won, lost = (y & ~x).sum(1), (x & ~y).sum(1)
    difference = (won - lost) / ITEMS
    unpaired = np.sqrt((x.var(1, ddof=1) + y.var(1, ddof=1)) / ITEMS)
    paired = np.sqrt(((won + lost) / ITEMS - difference**2) / (ITEMS - 1))
    tables, often = np.unique(np.stack([won, lost], 1), axis=0, return_counts=True)
    exact = sum(int(n) for (w, v), n in zip(tables.tolist(), often, strict=True) if mcnemar(w, v) <= 0.05)
    return *(int((abs(difference) > 1.96 * error).sum()) for error in (unpaired, paired)), exact


def lesson() -> Lesson:
    random = np.random.Generator(np.random.PCG64(0))
    nothing, gain = rejections(0.70, 0.70, random), rejections(0.70, 0.74, random)
    names = ("unpaired z", "paired z", "McNemar, exact")
    low_error, high_error = (100 * end for end in wilson(nothing[0], STUDIES))
    power = {name: 100 * n / STUDIES for name, n in zip(names, gain, strict=True)}
    around = {name: tuple(100 * end for end in wilson(n, STUDIES)) for name, n in zip(names, gain, strict=True)}
    half = {"stated": "50", "direction": "at least", "no_effect": 5.0}
    return Lesson(
        title=f"How often a difference is found, per cent of {STUDIES:,} studies of {ITEMS} items",
        columns=("test", "no difference", "4 points"),
        rows=[(name, f"{100 * n / STUDIES:.1f}", f"{power[name]:.1f}") for name, n in zip(names, nothing, strict=True)],
        statements=(
            Statement(
                id="no-harm",
                text="The change costs 0 points: the script finds no significant difference.",
                stated="0",
                found=4.0,  # what is lost, and found in every fifth case
                rules=(("V12", "both models answered the same items, and the test takes them for different ones"),),
            ),
            Statement(
                id="careful",
                text="The unpaired test errs in at most 5 % of cases.",
                stated="5",
                found=100 * nothing[0] / STUDIES,
                direction="at most",
                interval=(low_error, high_error),
            ),
            Statement(
                id="finds-it",
                text="The unpaired test finds a difference of 4 points in at least half of the cases.",
                found=power["unpaired z"],
                interval=around["unpaired z"],
                **half,
            ),
            Statement(
                id="paired-finds-it",
                text="The paired test finds it in at least half of the cases.",
                found=power["paired z"],
                interval=around["paired z"],
                **half,
            ),
        ),
        notes=(
            "the power is of this correlation of difficulty; what is published of the script was read in its source",
        ),
    )


if __name__ == "__main__":
    show(lesson())
