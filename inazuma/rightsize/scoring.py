"""How good an answer is: between 0 and 1 for each item, the same scorer for every rung."""

from __future__ import annotations

import json
from collections import Counter

from inazuma.rightsize.task import Task, field_kind


def score(task: Task, answer: str | None, target: str) -> float:
    """The quality of one answer, in [0, 1]; None (no answer could be read) is 0.

    classification: 1 if equal. multi-label: F1 of the labels. extraction: the mean over the schema's fields, each 1 if
    equal and, for a list, the F1 of its items. generation: 1 if equal, or the F1 of the words (Rajpurkar et al., SQuAD,
    arXiv 1606.05250). An F1 of two empty sets is 1.
    """
    if answer is None:
        return 0.0
    if task.kind == "classification":
        return float(answer == target)
    if task.kind == "multi-label":
        return f1(Counter(json.loads(answer)), Counter(json.loads(target)))
    if task.kind == "generation":
        if task.scorer == "exact":
            return float(answer == target)
        return f1(Counter(answer.casefold().split()), Counter(target.casefold().split()))
    found, wanted = json.loads(answer), json.loads(target)
    fields = task.schema["properties"]
    total = 0.0
    for name, kind in fields.items():
        if field_kind(name, kind) == "spans":
            total += f1(Counter(found[name]), Counter(wanted[name]))
        else:
            total += float(found[name] == wanted[name])
    return total / len(fields)


def f1(found: Counter[str], wanted: Counter[str]) -> float:
    """The harmonic mean of precision and recall of two multisets."""
    total = found.total() + wanted.total()
    return 2 * (found & wanted).total() / total if total else 1.0
