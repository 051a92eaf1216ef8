"""What became of an item: a typed outcome and the record of it, one line of a run's `samples.jsonl`.

Only "correct" and "wrong" are evidence about a model. An answer that was cut off, a connection that broke or an item
that could not be answered is something else, and is counted as what it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from inazuma.errors import UserError
from inazuma.runs.lines import read_lines

SAMPLES = "samples.jsonl"

Outcome = Literal["correct", "wrong", "truncated", "no_answer", "refused", "infrastructure_error", "invalid_item"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
Prompt = str | Sequence[Mapping[str, Any]]


def item_hash(task: str, prompt: Prompt, target: Any) -> str:
    """The SHA-256 that names an item: of its task, prompt and target as JSON with sorted keys and no spaces."""
    text = json.dumps({"task": task, "prompt": prompt, "target": target}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One item, one answer. None is a thing that is not known or does not apply."""

    task: str
    item: str
    """The item's hash; see `item_hash`."""
    id: str
    """The item's name inside its task."""
    cluster: str | None
    """Items of one cluster are not independent: a passage, a template, a document."""
    outcome: Outcome
    score: float | None
    """1 or 0, a grade between them, or a task's own unit; None where no answer was judged."""
    prompt: Prompt
    target: Any
    answer: str | None
    """What the model wrote, unchanged."""
    extracted: str | None
    """The part of the answer that was judged."""
    stop_reason: str | None
    """Why the model stopped: "stop" (by itself or at a stop string), "length" (the limit), or what a server said."""
    prompt_tokens: int | None
    generated_tokens: int | None
    max_tokens: int | None
    """The limit of generated tokens."""
    prompt_tokens_dropped: int | None
    """Prompt tokens that did not fit and were taken away; None where nobody tells."""
    min_answer_tokens: int | None
    """The fewest tokens that a right answer has."""
    chance: float | None
    """The score that guessing gets."""
    seed: int | None
    batch_size: int | None
    error: str | None

    def record(self) -> dict[str, Any]:
        """The line of `samples.jsonl`, as a mapping."""
        return asdict(self)


_NAMES = tuple(field.name for field in fields(Sample))


def sample_of(record: Mapping[str, Any], where: str = "sample") -> Sample:
    """The sample of one line; `UserError` says `where` a field is missing or an outcome is unknown."""
    missing = [name for name in _NAMES if name not in record]
    if missing:
        raise UserError(f"{where}: the sample has no {missing[0]!r}")
    if record["outcome"] not in OUTCOMES:
        raise UserError(f"{where}: unknown outcome {record['outcome']!r}; known are {', '.join(OUTCOMES)}")
    return Sample(**{name: record[name] for name in _NAMES})


def read_samples(folder: Path) -> list[Sample]:
    """The samples of a run folder, in order; `UserError` where there are none to read."""
    path = Path(folder) / SAMPLES
    return [sample_of(record, f"{path}:{number}") for number, record in enumerate(read_lines(path), start=1)]
