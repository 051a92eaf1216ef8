"""The Tower of Hanoi: a puzzle whose shortest answer doubles with every disc, and so outgrows any output limit.

A limit of 64K tokens, at 10 tokens a move, ends at 12 discs; what lies beyond says something about the limit and
nothing about the model. Such items are refused before they are asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.task import Item, Judgement, first_line

PEGS = "ABC"
MOST = 16
"""Discs: a witness of 65,535 moves is the longest that is written down."""


def solve(discs: int, source: str, target: str) -> Iterator[tuple[str, str]]:
    """The shortest solution, 2^discs - 1 moves (from, to)."""
    if discs:
        spare = next(peg for peg in PEGS if peg not in (source, target))
        yield from solve(discs - 1, source, spare)
        yield source, target
        yield from solve(discs - 1, spare, target)


def reaches(discs: int, source: str, target: str, moves: list[str]) -> bool:
    """Whether these moves ("AB": the top disc of A to B) are all allowed and bring every disc to `target`."""
    pegs = {peg: [] for peg in PEGS} | {source: list(range(discs, 0, -1))}
    for start, end in moves:
        if not pegs[start] or (pegs[end] and pegs[end][-1] < pegs[start][-1]):
            return False
        pegs[end].append(pegs[start].pop())
    return len(pegs[target]) == discs


class Hanoi:
    """Six items, one for each pair of pegs, for each number of discs."""

    name = "hanoi"
    stop = "\n"
    max_tokens = 4096

    def __init__(self, discs: range = range(1, 11)) -> None:
        if not discs or not 1 <= discs[0] <= discs[-1] <= MOST:
            raise UserError(f"hanoi: the number of discs lies in 1..{MOST}")
        self.discs = discs

    def items(self, seed: int) -> list[Item]:
        """The same for every seed: there are no others."""
        return [self._item(n, a, b) for n in self.discs for a, b in permutations(PEGS, 2)]

    def _item(self, discs: int, source: str, target: str) -> Item:
        prompt = (
            f"Tower of Hanoi. {discs} discs lie on peg {source}, the largest below. Pegs {PEGS[0]}, {PEGS[1]} and "
            f"{PEGS[2]}. A move takes the top disc of a peg to another peg, never onto a smaller disc. Bring all discs "
            f"to peg {target}. Write all moves in one line, as two letters each, separated by spaces: AB takes the top "
            "disc of A to B.\nMoves:"
        )
        witness = "".join(f" {a}{b}" for a, b in solve(discs, source, target))
        goal = {"discs": discs, "from": source, "to": target}
        return Item(self.name, f"{discs}-{source}{target}", prompt, goal, witness, 0.0, cluster=f"{discs} discs")

    def judge(self, answer: str, target: Any) -> Judgement:
        """1 for moves that are all allowed and reach the goal, however many."""
        moves = re.findall(r"\b([ABC])\s*(?:->|→|to)?\s*([ABC])\b", first_line(answer))
        moves = [a + b for a, b in moves if a != b]
        if not moves:
            return Judgement(0.0, None)
        done = reaches(target["discs"], target["from"], target["to"], moves)
        return Judgement(float(done), " ".join(moves))
