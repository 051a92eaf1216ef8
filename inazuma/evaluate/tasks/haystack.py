"""Long text that says nothing: sentences in which what is asked for is hidden.

A length is given in tokens of 4 bytes, about what tokenizers of English make of it, and not in those of one tokenizer:
the items are then the same for every model, and models can be compared. How many tokens a prompt had for the model that
read it is in its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inazuma.errors import UserError
from inazuma.evaluate.task import Item, Judgement, generator

BYTES_PER_TOKEN = 4
SHORTEST = 512
_WHO = ("the baker", "a sailor", "the old teacher", "her neighbour", "the gardener", "a carpenter", "the clerk",
        "his cousin", "the painter", "a farmer", "the nurse", "the postman", "a violinist", "the tailor")  # fmt: skip
_DID = ("carried", "found", "repaired", "sold", "painted", "borrowed", "forgot", "cleaned", "measured", "described",
        "wrapped", "counted", "hid", "returned")  # fmt: skip
_WHAT = ("a wooden chair", "the blue lantern", "an empty basket", "the heavy door", "a torn letter", "some fresh bread",
         "the copper kettle", "a long rope", "the broken clock", "a pair of boots", "the small boat", "an iron key",
         "a stack of plates", "the winter coat")  # fmt: skip
_WHERE = ("near the river", "behind the mill", "at the market", "on the hill", "in the cellar", "by the window",
          "under the bridge", "along the harbour", "in the garden", "at the station", "beside the well",
          "on the stairs")  # fmt: skip
_WHEN = ("before the rain came", "while the bells rang", "after supper", "early that morning", "as the sun went down",
         "when nobody looked", "during the long winter", "without saying a word")  # fmt: skip


def sentence(random: np.random.Generator) -> str:
    """One of about 230,000 sentences without names or numbers."""
    parts = (_WHO, _DID, _WHAT, _WHERE, _WHEN)
    who, did, what, where, when = (words[random.integers(len(words))] for words in parts)
    return f"{who[0].upper()}{who[1:]} {did} {what} {where} {when}."


def haystack(
    random: np.random.Generator, needles: Sequence[str], length: int, around: int, depth: float | None = None
) -> str:
    """Sentences, one a line, of about `length` tokens with what is `around` them (bytes), and `needles` among them.

    The needles keep their order; they lie at random places, or one of them at `depth` (0 the beginning, 1 the end).
    """
    room = length * BYTES_PER_TOKEN - around - sum(len(needle.encode()) + 1 for needle in needles)
    lines: list[str] = []
    while True:
        line = sentence(random)
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    if depth is not None:
        places = [round(depth * len(lines))] * len(needles)
    else:
        places = sorted(random.integers(0, len(lines) + 1, size=len(needles)).tolist())
    for place, needle in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0], reverse=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def length_name(length: int) -> str:
    """1024 as "1K", 1500 as "1500"."""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


class LongContextTask:
    """A question over a long text, at one length; a subclass makes the needles and judges the answer."""

    family: str
    """Its name without the length."""
    stop = "\n"
    max_tokens = 64

    def __init__(self, length: int, count: int) -> None:
        if length < SHORTEST:
            raise UserError(f"a length of {length} tokens has no room for the questions; from {SHORTEST} on")
        if count < 1:
            raise UserError(f"{count} items at a length are none")
        self.length = length
        self.count = count
        self.name = f"{self.family}-{length_name(length)}"

    def items(self, seed: int) -> list[Item]:
        """`count` items, each from a stream of random numbers of its own."""
        return [self.item(generator(seed, self.name, i), i) for i in range(self.count)]

    def item(self, random: np.random.Generator, number: int) -> Item:
        """One item."""
        raise NotImplementedError

    def judge(self, answer: str, target: Any) -> Judgement:
        """Whether what was extracted is the target."""
        found = self.extract(answer, target)
        return Judgement(float(found == target), found)

    def extract(self, answer: str, target: Any) -> str | None:
        """The part of the answer that is compared with the target."""
        raise NotImplementedError

    def prompt(
        self, random: np.random.Generator, task: str, needles: Sequence[str], question: str, depth: float | None = None
    ) -> str:
        """The whole prompt: what to do, the text, the question again, and where the answer begins."""
        around = len(f"{task}\n\n\n\n{question}\nAnswer:".encode())
        return f"{task}\n\n{haystack(random, needles, self.length, around, depth)}\n\n{question}\nAnswer:"


def names(random: np.random.Generator, count: int) -> list[str]:
    """So many different first names."""
    return [str(name) for name in random.choice(NAMES, size=count, replace=False)]


# fmt: off
NAMES = ("Ada", "Bruno", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Katya", "Liam", "Mina",
         "Nadia", "Oskar", "Petra", "Quentin", "Rosa", "Stefan", "Tara", "Ulrich", "Vera", "Walter", "Ximena", "Yusuf",
         "Zelda", "Akira", "Bente", "Cyril", "Daphne")
# fmt: on
