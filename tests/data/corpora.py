"""Small corpora, made up from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

SYLLABLES = ["ka", "ri", "mo", "shi", "the", "ing", "稲", "妻", "する", "é", "ß", "🌩", "\n", "\r\n", "x = ", "{}"]


def texts(count: int, *, seed: int = 0, longest: int = 60) -> list[str]:
    """`count` different texts of up to `longest` words, in several scripts."""
    random_ = random.Random(seed)

    def word() -> str:
        return "".join(random_.choices(SYLLABLES, k=random_.randint(1, 3)))

    return [f"{n} " + " ".join(word() for _ in range(random_.randint(0, longest))) for n in range(count)]


def write_json_lines(path: Path, lines: list[str], field: str = "text") -> Path:
    records = [json.dumps({"id": number, field: text}) for number, text in enumerate(lines)]
    path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    return path
