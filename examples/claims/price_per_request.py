"""Three dollars for a million requests, if they never pause.

A vendor of small fine-tuned models states 3 dollars for a million requests, against 378 for a mid-sized model behind an
API and 24 for a small one (Distil Labs, "The 10x inference tax you don't have to pay", 2026). The figure is right at
the load it was measured under: 222 requests a second, one GPU of 2.40 dollars an hour, never idle. A GPU that waits
costs the same, so the price of a request is

    price of an hour / (3600 * requests a second, on average)

and the claim is about the load. The vendor's own conclusion names one, a million requests a day, and holds there
against the model of 378 dollars; not against the one of 24. Advice in circulation ("self-host above 5,000 dollars a
month", "from 10,000 requests a day") is this formula with a load that is not said.
"""

from __future__ import annotations

from lesson import Lesson, Statement, show

LOAD = 222.0
"""Requests a second that the 3 dollars were measured under."""
HOUR = 2.40
A_DAY = 1e6 / 86_400
URL = "https://www.distillabs.ai/blog/the-10x-inference-tax-you-dont-have-to-pay"
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

    loads = (LOAD, A_DAY, 1.0, 0.1)
    return Lesson(
        title=f"Dollars for a million requests from one GPU at {HOUR:.2f} dollars an hour",
        columns=("requests a second", "dollars", f"against {SMALL:.0f}", f"against {MIDDLE:.0f}"),
        rows=[
            (f"{x:.3g}", f"{per_million(x):,.0f}", wins(per_million(x), SMALL), wins(per_million(x), MIDDLE))
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
                id="million-a-day",
                text="At a million requests a day they cost at most 378 dollars.",
                stated="378",
                found=per_million(A_DAY),
                direction="at most",
                source=(URL, "a dedicated distilled model will almost certainly save you money"),
            ),
            Statement(
                id="million-a-day-small",
                text="At a million requests a day they cost at most 24 dollars, the small model's price.",
                stated="24",
                found=per_million(A_DAY),
                direction="at most",
            ),
            Statement(
                id="break-even",
                text="The GPU pays from 4.6 million requests a month on.",
                stated="4.6",
                found=break_even(MIDDLE) * MONTH / 1e6,
            ),
            Statement(
                id="latency",
                text="Half of the requests take 390 ms at most at 222 requests a second.",
                missing="needs the vendor's models and data, which it says it publishes, and an H100",
            ),
        ),
        notes=(
            "the vendor's page was read in part, the hour's price, 24 and 378 in copies of its own post",
            "one replica, no redundancy, no labels, no training, nobody's time",
        ),
    )


if __name__ == "__main__":
    show(lesson())
