"""What a stated figure is worth, given what the records say: the second axis of a claim's verdict.

The first axis is whether the measurement is valid at all; a figure is judged only where it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Claimed = Literal["supported", "direction only", "underpowered", "overstated", "refuted", "not judged"]
WORST_FIRST = ("refuted", "overstated", "underpowered", "direction only", "not judged", "supported")


@dataclass(frozen=True)
class Verdict:
    """One figure's verdict, and why in words."""

    claim: Claimed
    why: str


def stated_number(text: str) -> float:
    """The number that a text such as "6,904" or "0.085" spells. Raises `ValueError` where it spells none."""
    return float(text.replace(",", "").replace("−", "-"))


def rounding(text: str) -> float:
    """Half a unit of a figure's last digit: how far the exact figure may lie from the one that is stated."""
    exponent = Decimal(text.replace(",", "").replace("−", "-")).as_tuple().exponent
    return 0.5 * 10.0**exponent


def judge_figure(stated: float, found: float, tolerance: float) -> Verdict:
    """A figure as it stands: the records give it within the tolerance, or they give another one."""
    # A figure that lies on the edge of rounding may be said either way.
    if abs(found - stated) <= tolerance * (1 + 1e-9) + 1e-12 * abs(stated):
        return Verdict("supported", "")
    return Verdict("refuted", f"the records give {found:.6g}, {stated:.6g} is stated")


def judge_bound(
    stated: float,
    found: float,
    *,
    at_least: bool,
    margin: float = 0.0,
    interval: Sequence[float] | None = None,
    no_effect: float | None = None,
) -> Verdict:
    """A figure that is claimed to be at least (or at most) `stated`.

    Supported: the whole interval is on the claimed side, give or take the margin. Overstated: the effect is there, and
    the whole interval falls short of its size. Direction only: the effect is there (the interval leaves out
    `no_effect`), its size may or may not be. Underpowered: the interval holds what is claimed and its contrary.
    Refuted: the interval leaves out what is claimed and shows no effect in its direction. Without an interval the
    figure is taken as exact.
    """
    sign = 1.0 if at_least else -1.0
    low, high = sorted(sign * end for end in (interval or (found, found)))
    # Without a value that means "no effect" every value has one direction, and only the size is in question.
    wanted, nothing = sign * stated - margin, -math.inf if no_effect is None else sign * no_effect
    side = "at least" if at_least else "at most"
    around = f" ({interval[0]:.6g} to {interval[1]:.6g})" if interval else ""
    measured = f"{found:.6g}{around}, {side} {stated:.6g} is stated"
    if low >= wanted:
        return Verdict("supported", "")
    if high <= nothing:
        return Verdict("refuted", f"{measured}; that is no effect, or one the other way")
    if high < wanted:
        if low <= nothing:
            return Verdict("refuted", f"{measured}; neither the size nor the direction is there")
        return Verdict("overstated", f"{measured}: overstated by {abs(stated - found):.6g}")
    if no_effect is not None and low > nothing:
        return Verdict("direction only", f"{measured}; the direction is clear and the size is not")
    return Verdict("underpowered", f"{measured}; the interval holds the claim and its contrary")
