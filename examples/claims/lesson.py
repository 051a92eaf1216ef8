"""What every lesson has: published claims, taken apart into statements that can be judged, each on two axes.

The words are those of `inazuma.runs.verdict`, which `inazuma verify` judges a claims file with. The measurement that a
statement rests on is valid, invalid (and which of the rules V01 to V25 it breaks) or not computable (and what is
missing); only what was validly measured is judged: supported, direction only, underpowered, overstated or refuted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from inazuma.runs.verdict import Verdict, judge_bound, judge_figure, rounding, stated_number


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sub-claim: what is said, by whom, the figure in it as it is stated, and the figure that was found here."""

    id: str
    text: str
    stated: str | None = None
    found: float | None = None
    within: float | None = None
    """How far off a figure may be; by default as far as its last digit was rounded."""
    direction: str | None = None
    """"at least" or "at most" makes the figure a bound, judged against `interval`."""
    interval: tuple[float, float] | None = None
    no_effect: float | None = None
    margin: float = 0.0
    rules: tuple[tuple[str, str], ...] = ()
    """(rule, evidence) of each rule that the measurement behind the statement breaks."""
    missing: str | None = None
    """Why nothing can be computed."""
    source: tuple[str, str] | None = None
    """(address, the very words)."""

    @property
    def measurement(self) -> str:
        if self.rules:
            return f"invalid ({', '.join(rule for rule, _ in self.rules)})"
        return "valid" if self.missing is None else f"not computable: {self.missing}"

    @property
    def verdict(self) -> Verdict:
        if self.rules or self.missing is not None:
            return Verdict("not judged", self.missing or "; ".join(why for _, why in self.rules))
        assert self.stated is not None and self.found is not None
        stated = stated_number(self.stated)
        if self.direction is None:
            within = rounding(self.stated) if self.within is None else self.within
            return judge_figure(stated, self.found, within)
        return judge_bound(
            stated,
            self.found,
            at_least=self.direction == "at least",
            margin=self.margin,
            interval=self.interval,
            no_effect=self.no_effect,
        )

    @property
    def claim(self) -> str:
        """The verdict's word, and by how much a statement is overstated, to two digits."""
        word = self.verdict.claim
        if word != "overstated":
            return word
        by = abs(stated_number(self.stated) - self.found)
        return f"overstated by {round(by, 1 - math.floor(math.log10(by))):g}"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What was computed, as a table, and what it makes of each statement."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    statements: Sequence[Statement]
    notes: Sequence[str] = field(default_factory=tuple)
    """What a reader must know: assumptions, and what was not read at its source."""


def show(lesson: Lesson) -> None:
    """Prints the table and the verdicts."""
    print(f"{lesson.title}\n\n{table(lesson.columns, lesson.rows)}\n")
    for one in lesson.statements:
        print(f"* {one.text}\n  measurement: {one.measurement} | claim: {one.claim}")
        if one.verdict.why and one.missing is None:
            print(f"  {one.verdict.why}")
    for note in lesson.notes:
        print(f"  note: {note}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Text in columns: words to the left, all else to the right."""
    cells = [[str(x) for x in row] for row in [columns, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [all(isinstance(row[i], str) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(x.ljust(w) if left else x.rjust(w) for x, w, left in zip(row, widths, words, strict=True)).rstrip()
        for row in cells
    )
