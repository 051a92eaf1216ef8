"""A random sample of a stream, bounded in number and in size: what is kept depends on the seed and the rows alone."""

from __future__ import annotations

import heapq
from hashlib import blake2b
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps the rows with the smallest random keys, as many of them in this order as `most` and `room` allow.

    A row's key follows from the seed and its number alone: neither its place nor its length makes it likelier to be
    kept.
    """

    def __init__(self, seed: int, most: int, room: int):
        self.seed, self.most, self.room = seed, most, room
        self._heap: list[tuple[int, int, int, T]] = []
        self._size = 0
        self._least_gone = 1 << 128
        """The smallest key that was let go: a larger one would be out of its turn, even where there is room again."""

    def key(self, number: int) -> int:
        return int.from_bytes(blake2b(f"{self.seed}:{number}".encode(), digest_size=16).digest(), "big")

    def add(self, number: int, size: int, item: T) -> None:
        """Offers the row of this number; `size` is what it takes of `room`."""
        key = self.key(number)
        if key >= self._least_gone:
            return
        # The heap's root is the largest key, the first to go.
        heapq.heappush(self._heap, (-key, number, size, item))
        self._size += size
        while len(self._heap) > self.most or self._size > self.room:
            gone = heapq.heappop(self._heap)
            self._size -= gone[2]
            self._least_gone = -gone[0]

    def items(self) -> list[T]:
        """What is kept, in the order of the rows."""
        return [entry[3] for entry in sorted(self._heap, key=lambda entry: entry[1])]
