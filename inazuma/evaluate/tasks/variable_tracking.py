"""Variable tracking: follow assignments from variable to variable until there is a number (after RULER, 2404.06654)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from inazuma.evaluate.task import Item, first_number
from inazuma.evaluate.tasks.haystack import LongContextTask

_CHAINS, _HOPS = 4, 3
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


class VariableTracking(LongContextTask):
    """Four chains of three assignments each, all mixed; asked is the number at the end of one."""

    family = "variable-tracking"

    def item(self, random: np.random.Generator, number: int) -> Item:
        count = _CHAINS * _HOPS
        variables: list[str] = []
        while len(variables) < count:
            name = "VAR_" + "".join(random.choice(list(_LETTERS), size=3).tolist())
            if name not in variables:
                variables.append(name)
        chains = [variables[i : i + _HOPS] for i in range(0, count, _HOPS)]
        numbers = [str(x) for x in 10_000 + random.choice(90_000, size=_CHAINS, replace=False)]
        lines = [
            [f"{chain[0]} = {value}"] + [f"{b} = {a}" for a, b in pairwise(chain)]
            for chain, value in zip(chains, numbers, strict=True)
        ]
        # The chains are mixed at random, and each keeps its order: an assignment follows what it refers to.
        order = random.permutation([i for i in range(_CHAINS) for _ in range(_HOPS)]).tolist()
        needles = [lines[i].pop(0) for i in order]
        asked = int(random.integers(_CHAINS))
        prompt = self.prompt(
            random,
            "Keep track of the variables that are assigned in the following text.",
            needles,
            f"What number is {chains[asked][-1]}? Answer with the number only.",
        )
        return Item(self.name, str(number), prompt, numbers[asked], f" {numbers[asked]}", 1 / _CHAINS, numbers)

    def extract(self, answer: str, target: Any) -> str | None:
        return first_number(answer)
