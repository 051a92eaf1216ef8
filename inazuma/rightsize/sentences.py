"""What came out, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inazuma.rightsize.task import Task


def verdict(task: Task, result: Mapping[str, Any]) -> str:
    """The verdict with its margin and confidence; where there is none, what is open and what would settle it."""
    found = result["verdict"]
    rungs = {rung["name"]: rung for rung in result["rungs"]}
    here = rungs[found["rung"]]
    best = max(rungs.values(), key=lambda rung: rung["quality"]["value"])
    points = f"{100 * task.margin:g} points"
    quality = f"{here['quality']['value']:.3f} [{here['quality']['low']:.3f}, {here['quality']['high']:.3f}]"
    if found["kind"] == "smallest-sufficient":
        best_one = "it is the best" if best is here else f"the best, {best['name']}, has {best['quality']['value']:.3f}"
        return (
            f"The smallest sufficient rung is {found['rung']}: quality {quality} on {here['items']} items; {best_one}. "
            f"It is within {points} of the best in {100 * found['probability']:.1f} % of the draws, every smaller rung "
            f"is not, at {100 * task.confidence:g} % confidence (Holm)."
        )
    if found["reason"] == "nothing learnt":
        return (
            f"Cannot tell: nothing was learnt. No rung is better than always the most frequent answer ({quality}) "
            f"by more than {points}; other features, more labels or another measure may help."
        )
    return (
        f"Cannot tell whether {found['open']} is within {points} of the best: about {found['more_labels']:,} more "
        f"labelled test items would settle it. Until then {found['rung']} is the safe choice: quality {quality} on "
        f"{here['items']} items, within {points} of the best in {100 * found['probability']:.1f} % of the draws."
    )
