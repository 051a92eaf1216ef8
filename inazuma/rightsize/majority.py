"""The floor of every comparison: always the most frequent answer; for extraction, what training texts named."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inazuma.files import read_json
from inazuma.rightsize.predictor import RUNG, Answer, write_kind
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task, field_kind


class Majority:
    """Answers `text` with confidence `share`, whatever it is asked. With `fields` it fills in a schema instead: a field
    with `values` gets those that stand in the text, the longest first, and any other its most frequent value."""

    def __init__(self, text: str, share: float, fields: dict[str, dict[str, Any]] | None = None):
        self.text, self.share, self.fields = text, share, fields

    @classmethod
    def fit(cls, task: Task, examples: Sequence[Example]) -> Majority:
        # Of equally frequent answers the first by name: the order of the rows must not matter.
        counts = Counter(example.target for example in examples)
        text, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if task.kind != "extraction":
            return cls(text, count / len(examples))
        fields: dict[str, dict[str, Any]] = {}
        targets = [json.loads(example.target) for example in examples]
        for name, kind in task.schema["properties"].items():
            kind = field_kind(name, kind)
            if kind == "enum":
                values = Counter(target[name] for target in targets)
                fields[name] = {"kind": kind, "usual": min(values, key=lambda value: (-values[value], value))}
            else:
                seen = {v for t in targets for v in (t[name] if kind == "spans" else [t[name]]) if v}
                fields[name] = {"kind": kind, "values": sorted(seen, key=lambda value: (-len(value), value))}
        return cls(text, count / len(examples), fields)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        if self.fields is None:
            return [Answer(self.text, self.share)] * len(texts)
        return [Answer(self._extract(text), self.share) for text in texts]

    def _extract(self, text: str) -> str:
        result: dict[str, Any] = {}
        for name, one in self.fields.items():
            if one["kind"] == "enum":
                result[name] = one["usual"]
                continue
            # Longest first, so that a name inside a longer one is not found again.
            pattern = "|".join(map(re.escape, one["values"]))
            found = re.findall(pattern, text) if pattern else []
            result[name] = sorted(set(found)) if one["kind"] == "spans" else (found[0] if found else "")
        return json.dumps(result, ensure_ascii=False)

    def save(self, folder: Path) -> None:
        write_kind(folder, "majority", text=self.text, share=self.share, fields=self.fields)

    @classmethod
    def load(cls, folder: Path) -> Majority:
        kept = read_json(folder / RUNG)
        return cls(kept["text"], kept["share"], kept["fields"])
