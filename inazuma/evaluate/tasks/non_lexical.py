"""Recall without a word in common: the text names a landmark, the question the country it stands in.

After NoLiMa (arXiv 2502.05167): where question and needle share words, finding equal words is enough, and nothing is
said about understanding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inazuma.evaluate.task import Item, first_of
from inazuma.evaluate.tasks.haystack import NAMES, LongContextTask, names

LANDMARKS = {
    "the Eiffel Tower": "France",
    "the Colosseum": "Italy",
    "the Brandenburg Gate": "Germany",
    "the Taj Mahal": "India",
    "Mount Fuji": "Japan",
    "Machu Picchu": "Peru",
    "the Kremlin": "Russia",
    "the Acropolis": "Greece",
    "the Great Sphinx": "Egypt",
    "the Alhambra": "Spain",
    "Petra’s Treasury": "Jordan",
    "the Sydney Opera House": "Australia",
    "Christ the Redeemer": "Brazil",
    "the Forbidden City": "China",
    "Angkor Wat": "Cambodia",
    "Hagia Sophia": "Turkey",
}
_PEOPLE = 5


class NonLexicalRecall(LongContextTask):
    """Who has been to this country? Five people stood in front of five landmarks."""

    family = "non-lexical-recall"

    def item(self, random: np.random.Generator, number: int) -> Item:
        people = names(random, _PEOPLE)
        places = [str(x) for x in random.choice(list(LANDMARKS), size=_PEOPLE, replace=False)]
        asked = int(random.integers(_PEOPLE))
        country = LANDMARKS[places[asked]]
        prompt = self.prompt(
            random,
            "Remember who is in the following text; you will be asked for one of them.",
            [f"{who} once stood in front of {place}." for who, place in zip(people, places, strict=True)],
            f"Who has been to {country}? Answer with the name only.",
        )
        # What a model knows of one landmark it knows in all items that ask for it.
        return Item(
            self.name, str(number), prompt, people[asked], f" {people[asked]}", 1 / _PEOPLE, people, cluster=country
        )

    def extract(self, answer: str, target: Any) -> str | None:
        return first_of(answer, NAMES)
