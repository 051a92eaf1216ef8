"""Recall: find the number that belongs to a key, where it is the only one, and where many keys have numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from inazuma.evaluate.task import Item, first_number
from inazuma.evaluate.tasks.haystack import LongContextTask, names

_DEPTHS = 5
_KEYS = 8


class SingleKeyRecall(LongContextTask):
    """One number in the text. The easiest of all, and alone no evidence of anything: it saturates."""

    family = "single-key-recall"
    keys = 1

    def item(self, random: np.random.Generator, number: int) -> Item:
        keys = names(random, self.keys)
        # Five digits, all different numbers: the answers are equally long and none is part of another.
        numbers = [str(x) for x in 10_000 + random.choice(90_000, size=self.keys, replace=False)]
        asked = int(random.integers(self.keys))
        # Depths in turn, so that every depth has as many items.
        depth = (number % _DEPTHS) / (_DEPTHS - 1) if self.keys == 1 else None
        prompt = self.prompt(
            random,
            "Remember the numbers in the following text; you will be asked for one of them.",
            [f"The number of {key} is {value}." for key, value in zip(keys, numbers, strict=True)],
            f"What is the number of {keys[asked]}? Answer with the number only.",
            depth,
        )
        where = str(number) if depth is None else f"{number}-depth-{depth:g}"
        # With one number in the text a guess is one of 90,000; with several it may take any that it sees.
        guesses = numbers if self.keys > 1 else ()
        chance = 1 / len(numbers) if self.keys > 1 else 1 / 90_000
        return Item(self.name, where, prompt, numbers[asked], f" {numbers[asked]}", chance, guesses)

    def extract(self, answer: str, target: Any) -> str | None:
        return first_number(answer)


class MultiKeyRecall(SingleKeyRecall):
    """Eight keys with a number each: finding a number is not enough, it must be the right one."""

    family = "multi-key-recall"
    keys = _KEYS
