"""Comparing texts: normal forms, shared stretches of words, what an answer says."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from inazuma.evaluate.overlap import words_of


def normal(value: str) -> str:
    """Case, width, punctuation at the ends and runs of white space taken away; digits and signs stay."""
    value = " ".join(unicodedata.normalize("NFKC", value).casefold().split())
    return value.strip(" .,:;!?\"'`*()[]{}$")


def grams(value: str, n: int) -> set[tuple[str, ...]]:
    """The runs of n words; the whole text where it has fewer."""
    found = words_of(value)
    return {tuple(found[at : at + n]) for at in range(max(1, len(found) - n + 1))} if found else set()


def as_number(value: str) -> float | None:
    """The number that a text is, with thousands' commas, a currency or percent sign taken away."""
    cleaned = re.sub(r"[,\s$€£%]", "", value).rstrip(".")
    try:
        return float(cleaned)
    except ValueError:
        return None


def same_answer(a: str, b: str) -> bool:
    """The same answer up to form: as numbers where both are, else in normal form."""
    one, other = as_number(a), as_number(b)
    return one == other if one is not None and other is not None else normal(a) == normal(b)


_MARKERS: Sequence[re.Pattern[str]] = [
    re.compile(r"\\boxed\{([^{}]+)\}"),
    re.compile(r"####\s*([^\n]+)"),
    re.compile(r"(?:final answer|the answer|answer)\s*(?:is|:|=)\s*:?\s*([^\n]+)", re.IGNORECASE),
]


def last_number(answer: str) -> str | None:
    """The last number of a text, thousands' commas included."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", answer)
    return found[-1].rstrip(",") if found else None


def final_answer(answer: str) -> str | None:
    """What an answer says is its answer: boxed, after `####`, after "the answer is"; the last of them; else None."""
    for marker in _MARKERS:
        if found := marker.findall(answer):
            value = found[-1].strip()
            value = re.split(r"(?<=[^\d\s])\.(?:\s|$)|(?<=\d)\.(?:\s|$)|\s{2,}", value)[0]
            return value.strip(" .*$`\"'")
    return None
