"""What a rule can say: this is wrong; this cannot be decided, and why; there is nothing here to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A flaw in `item` (a task, a comparison, a claim), with what shows it; `items` are the samples concerned."""

    item: str
    evidence: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Undecided:
    """The rule applies to `item`, and what was read does not decide it."""

    item: str
    reason: str


@dataclass(frozen=True)
class Nothing:
    """What the rule judges does not occur (no comparison, no energy figure)."""

    reason: str


Word = Found | Undecided | Nothing


def some(items: Sequence[str], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    shown = ", ".join(items[:limit])
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
