"""What an evaluation log says, whichever tool wrote it.

A study is what is audited: one log or several, and what was declared about them in `study.yaml`. A log holds tasks, a
task its samples and the scores that were reported of it. `None` always means that the log does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inazuma.evaluate.audit.declared import Declared
from inazuma.evaluate.outcome import Outcome

Stop = Literal["end", "length", "context", "filter", "unknown"]
"""Why generation ended: by itself, at the limit of new tokens, at the model's window, by a content filter."""

NOT_EVIDENCE = ("truncated", "refused", "infrastructure_error", "invalid_item")
"""Outcomes that say nothing about whether the model could have answered."""


@dataclass(frozen=True)
class Sample:
    """One answer to one item. Token counts are of the model's tokenizer; `score` is in [0, 1] for 0/1 metrics."""

    item: str
    score: float | None = None
    outcome: Outcome | None = None
    prompt: str | None = None
    question: str | None = None
    """The item's own part of the prompt, without instructions and examples."""
    target: str | None = None
    answer: str | None = None
    extracted: str | None = None
    choices: tuple[str, ...] | None = None
    gold: int | None = None
    """Which of the choices is the key."""
    cluster: str | None = None
    repeat: int = 0
    template: str | None = None
    stop: Stop | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    max_tokens: int | None = None
    prompt_tokens_dropped: int | None = None
    min_answer_tokens: int | None = None
    chance: float | None = None
    error: str | None = None
    witness: bool | None = None
    """Whether a solution of the item was proven to exist."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    content: str | None = None
    """A hash of the item itself, where the log holds one: the same name may stand for another item elsewhere."""

    @property
    def key(self) -> tuple[str, int]:
        """What two logs are aligned by."""
        return self.content or self.item, self.repeat


@dataclass(frozen=True)
class Score:
    """One reported figure of a task; `stderr` and `interval` as reported."""

    metric: str
    value: float
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    n: int | None = None
    bounds: tuple[float, float] | None = None
    """Worst and best case, given the samples that are no evidence."""


@dataclass(frozen=True)
class Task:
    name: str
    samples: tuple[Sample, ...]
    scores: tuple[Score, ...] = ()
    generates: bool = True
    """False where the model only scores given texts, so that nothing can be cut off or fail to be extracted."""
    fewshot: int | None = None
    family: str | None = None
    scorer: str | None = None
    judge: str | None = None
    """The model that graded the answers, where one did; `scorer` is known then."""


@dataclass(frozen=True)
class Log:
    path: Path
    format: str
    version: str | None
    model: str | None
    tasks: tuple[Task, ...]
    tokenizer: str | None = None
    temperature: float | None = None
    seed: int | None = None
    batch_size: int | None = None
    status: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it in `study.yaml`: the file's or the folder's name."""
        return self.path.name


@dataclass(frozen=True)
class Study:
    """All logs found at `path`, the declaration beside them, and what their folders show of runs beside them."""

    path: Path
    logs: tuple[Log, ...]
    declared: Declared = field(default_factory=Declared)
    training: tuple[TrainingRun, ...] = ()
    started: tuple[str, ...] = ()
    """Names of the runs that the ledgers here saw start."""

    def tasks(self) -> Iterator[tuple[Log, Task, str]]:
        """Every task with its log and the name that findings give it, which names the log where there are several."""
        for log in self.logs:
            for task in log.tasks:
                yield log, task, task.name if len(self.logs) == 1 else f"{log.name}: {task.name}"


@dataclass(frozen=True)
class TrainingRun:
    """A training run's folder: its configuration and the training loss of each step that its metrics hold."""

    path: Path
    config: Mapping[str, Any]
    losses: Mapping[int, float]
