"""Counting: how many times did something happen? No single place in the text has the answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from inazuma.evaluate.task import Item, first_number
from inazuma.evaluate.tasks.haystack import LongContextTask, names

_MOST = 8


class Counting(LongContextTask):
    """How often a person rang the bell, 1 to 8 times; others rang it too."""

    family = "counting"

    def item(self, random: np.random.Generator, number: int) -> Item:
        people = names(random, 3)
        count = int(random.integers(1, _MOST + 1))
        # So many rings in all items that the number of rings does not give the count away.
        rings = [people[0]] * count + [people[1 + i % 2] for i in range(2 * _MOST - count)]
        needles = [f"{who} rang the bell." for who in random.permutation(rings).tolist()]
        prompt = self.prompt(
            random,
            f"In the following text people ring a bell. Count how many times {people[0]} does.",
            needles,
            f"How many times did {people[0]} ring the bell? Answer with the number only.",
        )
        guesses = [str(x) for x in range(1, _MOST + 1)]
        return Item(self.name, str(number), prompt, str(count), f" {count}", 1 / _MOST, guesses)

    def extract(self, answer: str, target: Any) -> str | None:
        return first_number(answer)
