"""Sorting: bring what lies scattered in the text into an order, all of it."""

from __future__ import annotations

import math
import re
from itertools import permutations
from typing import Any

import numpy as np

from inazuma.evaluate.task import Item, first_line
from inazuma.evaluate.tasks.haystack import NAMES, LongContextTask, names

_PEOPLE = 4


class Sorting(LongContextTask):
    """Four people and their ages, scattered; asked are the names from the youngest to the oldest."""

    family = "sorting"

    def item(self, random: np.random.Generator, number: int) -> Item:
        people = names(random, _PEOPLE)
        ages = 20 + random.choice(60, size=_PEOPLE, replace=False)
        right = " ".join(people[i] for i in np.argsort(ages))
        prompt = self.prompt(
            random,
            "Remember how old the people in the following text are.",
            [f"{who} is {age} years old." for who, age in zip(people, ages.tolist(), strict=True)],
            f"List {', '.join(sorted(people))} from the youngest to the oldest. Answer with the names only.",
        )
        guesses = [" ".join(order) for order in permutations(people)]
        return Item(self.name, str(number), prompt, right, f" {right}", 1 / math.factorial(_PEOPLE), guesses)

    def extract(self, answer: str, target: Any) -> str | None:
        known = {name.lower(): name for name in NAMES}
        found = [known[word] for word in re.findall(r"\w+", first_line(answer).lower()) if word in known]
        return " ".join(found) or None
