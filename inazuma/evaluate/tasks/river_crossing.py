"""River Crossing: N actors, each with an agent, a boat for k, and no actor among other agents without the own one.

With a boat for three there is no solution from six pairs on: a model that finds none is right, and a table that counts
it as wrong is not. A breadth-first search finds the shortest solution or proves that there is none.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.task import Item, Judgement, first_line

MOST = 7
"""Pairs: the search of all states stays below a second."""
Crossing = frozenset[str]


def people(pairs: int) -> list[str]:
    """a1, A1, a2, A2, …: actors in small letters, their agents in capitals."""
    return [name for i in range(1, pairs + 1) for name in (f"a{i}", f"A{i}")]


def safe(group: frozenset[str]) -> bool:
    """Whether no actor in the group is with agents but without the own one."""
    agents = {name[1:] for name in group if name[0] == "A"}
    return not agents or all(name[1:] in agents for name in group if name[0] == "a")


@cache
def solve(pairs: int, boat: int) -> tuple[Crossing, ...] | None:
    """The fewest crossings that bring everyone over, the first of them away from the start; None: there are none."""
    everyone = frozenset(people(pairs))
    start = (everyone, True)
    came: dict[tuple[frozenset[str], bool], tuple[Any, Crossing] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        left, here = state
        if not left and not here:
            crossings: list[Crossing] = []
            step = came[state]
            while step is not None:
                crossings.append(step[1])
                step = came[step[0]]
            return tuple(crossings[::-1])
        bank = left if here else everyone - left
        for count in range(1, boat + 1):
            for group in map(frozenset, combinations(sorted(bank), count)):
                if not safe(group):
                    continue
                after = left - group if here else left | group
                following = (after, not here)
                if following not in came and safe(after) and safe(everyone - after):
                    came[following] = (state, group)
                    queue.append(following)
    return None


def brings_over(pairs: int, boat: int, crossings: Sequence[Crossing]) -> bool:
    """Whether these crossings, to and fro in turn, are all allowed and leave nobody behind."""
    everyone = frozenset(people(pairs))
    left, here = everyone, True
    for group in crossings:
        bank = left if here else everyone - left
        if not group or len(group) > boat or not group <= bank or not safe(group):
            return False
        left, here = (left - group if here else left | group), not here
        if not safe(left) or not safe(everyone - left):
            return False
    return not left


class RiverCrossing:
    """One item for each number of pairs and seats."""

    name = "river-crossing"
    stop = "\n"
    max_tokens = 1024

    def __init__(self, pairs: range = range(2, 7), boats: tuple[int, ...] = (2, 3, 4)) -> None:
        if not pairs or not 1 <= pairs[0] <= pairs[-1] <= MOST or not boats or min(boats) < 1:
            raise UserError(f"river-crossing: the number of pairs lies in 1..{MOST}, and a boat holds someone")
        self.pairs, self.boats = pairs, boats

    def items(self, seed: int) -> list[Item]:
        """The same for every seed: there are no others."""
        return [self._item(n, k) for k in self.boats for n in self.pairs]

    def _item(self, pairs: int, boat: int) -> Item:
        crossings = solve(pairs, boat)
        prompt = (
            f"{pairs} actors, a1 to a{pairs}, and their agents, A1 to A{pairs}, must cross a river. The boat holds up "
            f"to {boat} people and never crosses empty. Nowhere, on either bank or in the boat, may an actor be with "
            "the agent of another actor unless the own agent is there too. Write all crossings in one line, separated "
            "by spaces, to and fro in turn, each as the people in the boat joined by +: A1+a1 a1 A2+a2\nCrossings:"
        )
        witness = None if crossings is None else "".join(" " + "+".join(sorted(group)) for group in crossings)
        reason = f"no sequence of crossings brings {pairs} pairs over in a boat for {boat} (all states searched)"
        return Item(
            self.name,
            f"{pairs}-pairs-boat-{boat}",
            prompt,
            {"pairs": pairs, "boat": boat},
            witness,
            0.0,
            impossible=reason if crossings is None else None,
        )

    def judge(self, answer: str, target: Any) -> Judgement:
        """1 for crossings that are all allowed and leave nobody behind, however many."""
        words = re.findall(r"[aA]\d+(?:\+[aA]\d+)*", first_line(answer))
        if not words:
            return Judgement(0.0, None)
        crossings = [frozenset(word.split("+")) for word in words]
        return Judgement(float(brings_over(target["pairs"], target["boat"], crossings)), " ".join(words))
