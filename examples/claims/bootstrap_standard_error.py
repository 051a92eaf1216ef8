"""A bootstrap standard error that is the square root of B too small.

A bootstrap draws B new samples and computes the figure of each; the standard deviation of these B figures *is* the
standard error. lighteval (`metrics/utils/stderr.py`, revision 3fd1526) divides it once more by the square root of B, as
one does for a mean of B independent figures: more draws then make the error bar as small as one likes. With 1,000
draws it is 31.6 times too small, and an interval that promises 95 % holds the truth in fewer than 5 % of cases.

It concerns metrics of a whole corpus, which are not a mean of items. Accuracy is used here, since its standard error is
known: sqrt(p (1 - p) / (n - 1)). A bootstrap draw of n zeros and ones with share p is a binomial draw.
"""

from __future__ import annotations

import math

import numpy as np
from lesson import Lesson, Statement, show

from inazuma.runs.intervals import standard_error, wilson

ITEMS, SHARE, DRAWS, STUDIES = 500, 0.6, 1000, 4000


def lesson() -> Lesson:
    random = np.random.Generator(np.random.PCG64(0))
    right = np.arange(ITEMS) < SHARE * ITEMS
    analytic = standard_error(right.astype(float))
    draws = random.binomial(ITEMS, right.mean(), size=DRAWS) / ITEMS
    bootstrap = float(draws.std(ddof=1))
    divided = bootstrap / math.sqrt(DRAWS)

    shares = random.binomial(ITEMS, SHARE, size=STUDIES) / ITEMS
    errors = np.array([(random.binomial(ITEMS, p, size=DRAWS) / ITEMS).std(ddof=1) for p in shares])
    held = [int((abs(shares - SHARE) <= 1.96 * e).sum()) for e in (errors, errors / math.sqrt(DRAWS))]
    coverage = [100 * n / STUDIES for n in held]
    intervals = [tuple(100 * end for end in wilson(n, STUDIES)) for n in held]
    # What is promised is 95 %, give or take what 500 items and a grid of shares of 0.2 % do to it.
    promise = {"stated": "95", "direction": "at least", "margin": 1.5}
    return Lesson(
        title=f"The standard error of {100 * right.mean():.0f} % of {ITEMS} items",
        columns=("how", "points", "95 % intervals that hold the truth, %"),
        rows=[
            ("closed form", f"{100 * analytic:.2f}", ""),
            (f"bootstrap of {DRAWS}", f"{100 * bootstrap:.2f}", f"{coverage[0]:.1f}"),
            ("the same, divided by √B", f"{100 * divided:.3f}", f"{coverage[1]:.1f}"),
        ],
        statements=(
            Statement(
                id="error-bar",
                text="The score is 60 % with a standard error of 0.07 points.",
                stated="0.07",
                found=100 * analytic,
                rules=(("V22", f"{100 * divided:.3f} is stated, the closed form gives {100 * analytic:.2f}"),),
            ),
            Statement(
                id="square-root-of-b",
                text="The error bar is 31.6 times too small.",
                stated="31.6",
                found=analytic / divided,
                within=31.6 * 0.1,  # a bootstrap of 1,000 draws knows its standard error to a few per cent
            ),
            Statement(
                id="covers",
                text="Its intervals hold the truth in at least 95 % of cases.",
                found=coverage[1],
                interval=intervals[1],
                **promise,
            ),
            Statement(
                id="undivided-covers",
                text="Undivided, they hold the truth in at least 95 % of cases.",
                found=coverage[0],
                interval=intervals[0],
                **promise,
            ),
        ),
        notes=("which of lighteval's metrics use this function was not enumerated",),
    )


if __name__ == "__main__":
    show(lesson())
