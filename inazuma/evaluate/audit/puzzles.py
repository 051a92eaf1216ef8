"""Puzzles that are recognised in a prompt and whose solvability is decided exactly."""

from __future__ import annotations

import math
import re
from collections import deque
from functools import cache

_CROSSING = re.compile(r"\b(?:river|cross)", re.IGNORECASE)
_PAIRS = re.compile(
    r"\b(\d+)\s+(?:pairs|couples|actors|clients|missionaries|husbands)\b|\bN\s*=\s*(\d+)\b", re.IGNORECASE
)
_BOAT = re.compile(
    r"\bboat\b[^.;]{0,80}?(?:holds?|carry|carries|capacity|seats?|fits?|at most|up to|only)\D{0,30}(\d+)"
    r"|\bk\s*=\s*(\d+)\b|\b(\d+)-(?:person|seat)\s+boat",
    re.IGNORECASE,
)
_JUGS = re.compile(r"\bjugs?\b", re.IGNORECASE)
_QUEENS = re.compile(r"\b(\d+)[\s-]queens?\b", re.IGNORECASE)
_NUMBER = re.compile(r"\b(\d+)\b")


def solvable(text: str) -> tuple[str, bool] | None:
    """(the puzzle in words, whether it has a solution), or None where the text is no puzzle known here."""
    if _CROSSING.search(text) and (pairs := _PAIRS.search(text)) and (boat := _BOAT.search(text)):
        n, k = int(pairs[1] or pairs[2]), int(boat[1] or boat[2] or boat[3])
        if 1 <= n <= 100 and 1 <= k <= 100:
            return f"river crossing of {n} pairs with a boat for {k}", crossing(n, k)
    if _JUGS.search(text):
        numbers = [int(found) for found in _NUMBER.findall(text)]
        if len(numbers) == 3:
            *jugs, wanted = numbers
            return f"measuring {wanted} with jugs of {jugs[0]} and {jugs[1]}", measurable(jugs[0], jugs[1], wanted)
    if found := _QUEENS.search(text):
        return f"{found[1]} queens on a board of that size", int(found[1]) not in (2, 3)
    return None


@cache
def crossing(pairs: int, boat: int) -> bool:
    """Whether n pairs can cross: nowhere may the guarded be outnumbered by the others' guards (search of all states).

    Counting heads decides the puzzle of pairs too: Pressman and Singmaster, The Jealous Husbands and the Missionaries
    and Cannibals, The Mathematical Gazette 73 (1989).
    """

    def safe(a: int, b: int) -> bool:
        return (a == 0 or a >= b) and (pairs - a == 0 or pairs - a >= pairs - b)

    start = (pairs, pairs, 0)
    seen, queue = {start}, deque([start])
    while queue:
        a, b, bank = queue.popleft()
        if (a, b) == (0, 0):
            return True
        here = (a, b) if bank == 0 else (pairs - a, pairs - b)
        sign = -1 if bank == 0 else 1
        for first in range(min(here[0], boat) + 1):
            for second in range(min(here[1], boat - first) + 1):
                if first + second == 0 or (first and first < second):
                    continue
                state = (a + sign * first, b + sign * second, 1 - bank)
                if state not in seen and safe(*state[:2]):
                    seen.add(state)
                    queue.append(state)
    return False


def measurable(first: int, second: int, wanted: int) -> bool:
    """Whether two jugs can measure an amount: it fits into both together and their common divisor divides it."""
    if wanted == 0:
        return True
    divisor = math.gcd(first, second)
    return divisor > 0 and wanted <= first + second and wanted % divisor == 0
