"""Who has which page of the caches, and which pages can be shared: texts that begin alike are read once.

All layers' caches are cut in pages of `PAGE` tokens, and a page number means the same tokens in each of them. A full
page is published under what it holds and all that comes before it, so that another text with the same beginning finds
it; it stays when its text has ended, until its memory is wanted.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from inazuma.ops.pool import PAGE

ROOT = b""
"""The name of the empty beginning."""


def name_of(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The name of a page of `tokens` behind the page named `parent`: a digest, as nobody may be served another's text
    because two hashes collide."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()


class Pages:
    """Counts the users of each page. Not safe across threads: the engine's thread alone calls it."""

    def __init__(self, total: int):
        self.total = total
        self._unused = list(range(total - 1, -1, -1))
        self._users = [0] * total
        self._by_name: dict[bytes, int] = {}
        self._name: list[bytes | None] = [None] * total
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Published pages without users; the first will be forgotten first."""

    @property
    def available(self) -> int:
        """Pages that `take` can give: unused ones, and idle ones, which are forgotten for it."""
        return len(self._unused) + len(self._idle)

    def find(self, tokens: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """The published pages that `tokens` begin with, which now have one user more, and their names behind `ROOT`."""
        pages, names = [], [ROOT]
        for start in range(0, len(tokens) - PAGE + 1, PAGE):
            name = name_of(names[-1], tokens[start : start + PAGE])
            page = self._by_name.get(name)
            if page is None:
                break
            names.append(name)
            pages.append(page)
            self._users[page] += 1
            self._idle.pop(page, None)
        return pages, names

    def take(self) -> int | None:
        """A page for one user, with anything in it; None where all are in use."""
        if self._unused:
            page = self._unused.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._by_name[self._name[page]]
            self._name[page] = None
        else:
            return None
        self._users[page] = 1
        return page

    def publish(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Lets others find a full page; returns its name. Where one is known by it already, that one stays."""
        name = name_of(parent, tokens)
        if name not in self._by_name and self._name[page] is None:
            self._by_name[name] = page
            self._name[page] = name
        return name

    def release(self, pages: Sequence[int]) -> None:
        """Takes a user off each of a text's pages; the last of them is forgotten before the first."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if self._name[page] is None:
                self._unused.append(page)
            else:
                self._idle[page] = None
