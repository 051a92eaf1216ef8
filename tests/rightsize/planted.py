"""Data whose answer is known."""

from __future__ import annotations

import csv
import random
from pathlib import Path

WORDS = [f"{a}{b}{c}" for a in "bdgkmn" for b in "aeiou" for c in "lmr"]


def write(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def keyword(count: int, seed: int = 0) -> list[dict]:
    """One word anywhere decides the label."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(WORDS, k=draw.randint(6, 12))
        words[draw.randrange(len(words))] = "refund" if i % 2 else "thanks"
        rows.append({"text": " ".join(words), "label": "complaint" if i % 2 else "praise"})
    draw.shuffle(rows)
    return rows


def order(count: int, seed: int = 0) -> list[dict]:
    """The same two words stand in every text, never side by side; which comes first decides the label."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(WORDS[:20], k=draw.randint(5, 7))
        first = draw.randrange(len(words) - 2)
        second = draw.randrange(first + 2, len(words))
        words[first], words[second] = ("alpha", "omega") if i % 2 else ("omega", "alpha")
        rows.append({"text": " ".join(words), "label": "rising" if i % 2 else "falling"})
    draw.shuffle(rows)
    return rows


def noisy(count: int, seed: int = 0, share: float = 0.15) -> list[dict]:
    """`keyword`, with this share of the labels turned round."""
    draw = random.Random(seed + 1)
    rows = keyword(count, seed)
    for row in rows:
        if draw.random() < share:
            row["label"] = "praise" if row["label"] == "complaint" else "complaint"
    return rows
