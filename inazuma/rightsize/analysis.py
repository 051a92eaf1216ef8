"""What the report says beyond the verdict, from the rungs' samples alone: slices, calibration, curves, break-even."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inazuma.runs.intervals import bootstrap_mean
from inazuma.runs.load import request_cost, workers_for

FEWEST_IN_SLICE = 15
BINS = 10


def slices(
    small: Sequence[Mapping[str, Any]], large: Sequence[Mapping[str, Any]], classes: bool
) -> list[dict[str, Any]]:
    """How far `small` falls short of `large` in parts of the test items, the worst first, each with an interval.

    Parts are thirds by length, the script of the text, the label, and the group; of at least 15 items. They are many
    and small, and the intervals are not adjusted for that: a place to look at, no finding.
    """
    lengths = np.array([len(line["prompt"]) for line in small])
    cuts = np.quantile(lengths, [1 / 3, 2 / 3])
    parts: dict[str, list[int]] = defaultdict(list)
    for i, line in enumerate(small):
        third = int(np.searchsorted(cuts, lengths[i], side="left"))
        parts[f"length: {('short', 'middle', 'long')[third]}"].append(i)
        parts[f"script: {script(line['prompt'])}"].append(i)
        if classes:
            parts[f"label: {line['target']}"].append(i)
        if line["cluster"] is not None:
            parts[f"group: {line['cluster']}"].append(i)
    rows = []
    for name, places in parts.items():
        if len(places) < FEWEST_IN_SLICE:
            continue
        difference = [small[i]["score"] - large[i]["score"] for i in places]
        low, high = bootstrap_mean(difference, [small[i]["cluster"] for i in places], seed=0)
        rows.append(
            {
                "slice": name,
                "items": len(places),
                "small": float(np.mean([small[i]["score"] for i in places])),
                "large": float(np.mean([large[i]["score"] for i in places])),
                "difference": float(np.mean(difference)),
                "low": low,
                "high": high,
            }
        )
    return sorted(rows, key=lambda row: row["difference"])


def script(text: str) -> str:
    """The script most letters of a text are of, by its name in Unicode; kana anywhere make it "Japanese"."""
    counts: dict[str, int] = defaultdict(int)
    for letter in text:
        if letter.isalpha():
            counts[unicodedata.name(letter, "?").split()[0].title()] += 1
    if not counts:
        return "none"
    if counts.get("Hiragana", 0) + counts.get("Katakana", 0) > 0:
        return "Japanese"
    return max(counts, key=lambda name: counts[name])


def calibration_error(lines: Sequence[Mapping[str, Any]]) -> float:
    """Expected calibration error over ten bins of equal width (Naeini, Cooper and Hauskrecht, AAAI 2015)."""
    confidence = np.array([line["confidence"] for line in lines])
    score = np.array([line["score"] for line in lines])
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    error = 0.0
    for k in range(BINS):
        here = place == k
        if here.any():
            error += here.mean() * abs(float(confidence[here].mean() - score[here].mean()))
    return float(error)


def cost_curve(
    facts: Mapping[str, Any], prices: Mapping[str, float], load: float, rates: Sequence[float], peak_factor: float
) -> list[float]:
    """What 1000 requests cost at each average rate; `load` is the most requests a second of one worker."""
    costs = []
    for rate in rates:
        workers = workers_for(rate * peak_factor, load)
        costs.append(1000 * sum(request_cost(facts, prices, workers, rate).values()))
    return costs


def break_even(rates: Sequence[float], small: Sequence[float], large: Sequence[float]) -> float | None:
    """The lowest of the rates from which on `small` is cheaper than `large`; None if it never stays so."""
    found = None
    for rate, a, b in zip(rates, small, large, strict=True):
        if a < b and found is None:
            found = rate
        elif a >= b:
            found = None
    return found
