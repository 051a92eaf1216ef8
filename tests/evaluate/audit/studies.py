"""Small studies made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inazuma.evaluate.audit import RULES, judge
from inazuma.evaluate.audit.declared import Declared
from inazuma.evaluate.audit.log import Log, Sample, Score, Study, Task


def sample(at: int, right: bool = True, **facts: Any) -> Sample:
    """Item `at`: what is 7 times it? Answered, in few of many tokens."""
    key = str(7 * at)
    said = key if right else str(7 * at + 1)
    made = Sample(
        item=str(at),
        score=float(right),
        outcome="correct" if right else "wrong",
        prompt=f"Multiply. What is the product of seven and {at}?",
        question=f"What is the product of seven and {at}?",
        target=key,
        answer=f"The answer is {said}.",
        extracted=said,
        stop="end",
        prompt_tokens=12,
        prompt_tokens_dropped=0,
        generated_tokens=6 + at % 3,
        max_tokens=64,
        witness=True,
    )
    return replace(made, **facts)


def samples(right: int, n: int, **facts: Any) -> list[Sample]:
    """n items of which the first `right` are answered right."""
    return [sample(at, at < right, **facts) for at in range(n)]


def score(some: Sequence[Sample], **facts: Any) -> Score:
    """The mean with the closed form's standard error."""
    x = [s.score for s in some if s.score is not None]
    p = sum(x) / len(x)
    return replace(Score("acc", p, math.sqrt(p * (1 - p) / (len(x) - 1)), None, len(x)), **facts)


def task(some: Sequence[Sample], name: str = "product", **facts: Any) -> Task:
    made = Task(name, tuple(some), (score(some),), fewshot=0, scorer="exact")
    return replace(made, **facts)


def log(*tasks: Task, name: str = "log", model: str | None = "acme/larch-1b", **facts: Any) -> Log:
    return replace(Log(Path(name), "inspect", "0.3.285", model, tasks), **facts)


def study(*logs: Log, path: Path = Path("results"), declared: Declared | None = None, **facts: Any) -> Study:
    return Study(path, logs, declared or Declared(), **facts)


def one(some: Sequence[Sample], **facts: Any) -> Study:
    """A study of one log with one task."""
    return study(log(task(some, **facts)))


def verdict(rule: str, made: Study) -> str:
    """What one rule alone says of the study."""
    (module,) = (one_rule for one_rule in RULES if rule == one_rule.NUMBER)
    return judge(made, rules=[module]).rules[rule]
