"""Three dollars for a million requests, if they never pause.

A vendor of small fine-tuned models (Distil Labs, 2026) states 3 dollars for a million requests, against 378 for a
mid-sized model behind an API and 24 for a small one. The figure is right at the load it was measured under: 222
requests a second, one GPU never idle. A GPU that waits costs the same, so the price of a request is

    price of an hour / (3600 * requests a second, on average)

and the claim is about the load: 1.8 requests a second, day and night, or 4.6 million a month, to be cheaper than the
mid-sized model. Advice in circulation ("self-host above 5,000 dollars a month", "from 10,000 requests a day") is this
formula with a load that is not said.
"""

from __future__ import annotations

from lesson import Lesson, Statement, show

STATED, LOAD = 3.0, 222.0
"""Dollars for a million requests, and the requests a second they were measured under."""
HOUR = STATED / 1e6 * LOAD * 3600
SMALL, MIDDLE = 24.0, 378.0
"""Dollars for a million requests behind an API, as the same vendor states them for the same task."""
MONTH = 365.25 / 12 * 86_400


def per_million(load: float) -> float:
    """Dollars for a million requests at an average of `load` requests a second, one replica."""
    return HOUR / 3600 / load * 1e6


def break_even(price: float) -> float:
    """The average requests a second from which on the GPU is cheaper than `price` dollars for a million."""
    return HOUR / 3600 / price * 1e6


def lesson() -> Lesson:
    def wins(cost: float, price: float) -> str:
        return "cheaper" if cost < price else "dearer"

    loads = (LOAD, 10.0, 1.0, 0.1)
    return Lesson(
        title=f"Dollars for a million requests from one GPU at {HOUR:.2f} dollars an hour",
        columns=("requests a second", "dollars", f"against {SMALL:.0f}", f"against {MIDDLE:.0f}"),
        rows=[
            (f"{x:g}", f"{per_million(x):,.0f}", wins(per_million(x), SMALL), wins(per_million(x), MIDDLE))
            for x in loads
        ],
        statements=(
            Statement(
                id="at-one",
                text="A million requests cost at most 3 dollars (at one request a second).",
                stated="3",
                found=per_million(1),
                direction="at most",
            ),
            Statement(
                id="cheaper-at-one",
                text="They cost at most 378 dollars, the mid-sized model's price (at one request a second).",
                stated="378",
                found=per_million(1),
                direction="at most",
            ),
            Statement(
                id="cheaper-at-ten",
                text="They cost at most 378 dollars (at ten requests a second).",
                stated="378",
                found=per_million(10),
                direction="at most",
            ),
            Statement(
                id="break-even",
                text="The GPU pays from 4.6 million requests a month on.",
                stated="4.6",
                found=break_even(MIDDLE) * MONTH / 1e6,
            ),
            Statement(
                id="quality",
                text="The small model is as good as the mid-sized one.",
                missing="the sizes of the test sets and the single answers are not published",
            ),
        ),
        notes=(
            "the GPU's price is inferred from the vendor's own 3 dollars and 222 requests; the figures are second-hand",
            "one replica, no redundancy, no labels, no training, nobody's time",
        ),
    )


if __name__ == "__main__":
    show(lesson())
