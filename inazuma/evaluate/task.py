"""What a task is: items that are proved before they are asked, and a judge of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from inazuma.errors import UserError
from inazuma.evaluate.outcome import item_hash


@dataclass(frozen=True)
class Item:
    """One question. `target` is JSON, and all that the judge needs to know of it."""

    task: str
    id: str
    prompt: str
    target: Any
    witness: str | None
    """A shortest answer that a solver found and the judge accepts; None where there is none."""
    chance: float
    """The score that the best guess gets which does not understand the prompt."""
    guesses: Sequence[str] = ()
    """The answers such a guess is drawn from, for a test of `chance`."""
    cluster: str | None = None
    impossible: str | None = None
    """Why no answer can be right, as a solver proved; such an item is never asked."""

    @property
    def hash(self) -> str:
        return item_hash(self.task, self.prompt, self.target)


@dataclass(frozen=True)
class Judgement:
    """A score from 0 to 1, and the part of the answer it stands on; `extracted` None: there was no answer in it."""

    score: float
    extracted: str | None


class Task(Protocol):
    """A kind of questions, perhaps at several lengths. Its items are the same on every machine."""

    name: str
    stop: str | None
    """The text at which an answer ends."""
    max_tokens: int
    """The limit of an answer, unless the person sets another."""

    def items(self, seed: int) -> list[Item]: ...

    def judge(self, answer: str, target: Any) -> Judgement: ...


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A stream of random numbers of its own for each path of names, the same on every machine."""
    words = [seed, *(int.from_bytes(str(part).encode(), "big") for part in path)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def first_line(answer: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in answer.splitlines() if line.strip()), "")


def first_number(answer: str) -> str | None:
    """The first whole number in the first line, without separators of thousands or zeros in front."""
    found = re.search(r"\d+(?:,\d{3})*", first_line(answer))
    return str(int(found.group().replace(",", ""))) if found else None


def first_of(answer: str, words: Iterable[str]) -> str | None:
    """The word of `words` that occurs first in the first line, in any case; None without one."""
    pattern = "|".join(map(re.escape, words))
    found = re.search(rf"\b(?:{pattern})\b", first_line(answer), re.IGNORECASE)
    return None if found is None else next(w for w in words if w.lower() == found.group().lower())


def check_items(items: Sequence[Item]) -> None:
    """Raises `UserError` for no items, and for two that have one id or are one and the same."""
    if not items:
        raise UserError("no items: there is nothing to evaluate")
    for what in ("id", "hash"):
        seen: dict[Any, Item] = {}
        for item in items:
            key = (item.task, getattr(item, what))
            if key in seen:
                other = seen[key].id
                raise UserError(
                    f"{item.task}: two items have the id {item.id!r}"
                    if what == "id"
                    else f"{item.task}: the items {other!r} and {item.id!r} are the same"
                )
            seen[key] = item
