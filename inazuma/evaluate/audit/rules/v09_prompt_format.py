"""The result hangs on the wording of the prompt."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Log, Study, Task
from inazuma.evaluate.audit.measure import percent, scored, values

NUMBER = "V09"
TITLE = "Sensitivity to the prompt's format"
SOURCE = "FormatSpread (Sclar et al., arXiv 2310.11324): up to 76 points between formats that mean the same"
FIX = "run at least 5 templates that mean the same; report their median and spread; compare under the same templates"

Scores = dict[str, tuple[float, int]]
"""Template → (score, number of items)."""


def check(study: Study) -> Iterator[Word]:
    tables = _tables(study)
    for (model, task), scores in tables.items():
        yield from _best_picked(study, model, task, scores)
    yield from _ranked(study, tables)
    yield from _different_examples(study)
    alone = [f"{model}: {task}" for (model, task), scores in tables.items() if len(scores) < 2]
    if alone:
        yield Undecided(some(alone, 3), "one template only, so nothing shows how much hangs on its wording")


def _tables(study: Study) -> dict[tuple[str, str], Scores]:
    tables: dict[tuple[str, str], Scores] = defaultdict(dict)
    for one in study.declared.formats:
        tables[one.model, one.task][one.template] = (one.score, one.n)
    for log, task, _ in study.tasks():
        groups = defaultdict(list)
        for sample in scored(task.samples):
            groups[sample.template or ""].append(sample)
        for template, samples in groups.items():
            if template or (log.model or log.name, task.name) not in tables:
                tables[log.model or log.name, task.name][template] = (float(values(samples).mean()), len(samples))
    return tables


def _best_picked(study: Study, model: str, task: str, scores: Scores) -> Iterator[Word]:
    if len(scores) < 2:
        return
    (best, n), worst = max(scores.values()), min(scores.values())[0]
    headline = [f.score for f in study.declared.formats if f.model == model and f.task == task and f.headline]
    headline += [
        score.value
        for log, t, _ in study.tasks()
        if (log.model or log.name, t.name) == (model, task)
        for score in t.scores[:1]
    ]
    error = math.sqrt(max(best * (1 - best), 0.25 / n) / n + max(worst * (1 - worst), 0.25 / n) / n)
    if any(abs(value - best) < 1e-9 for value in headline) and best - worst > 1.96 * error:
        yield Found(
            f"{model}: {task}",
            f"the reported {percent(best)} is the best of {len(scores)} templates; the worst gives {percent(worst)}",
        )


def _ranked(study: Study, tables: dict[tuple[str, str], Scores]) -> Iterator[Word]:
    names = {log.name: log.model or log.name for log in study.logs}
    for claim in study.declared.comparisons:
        if claim.claim not in ("better", "worse"):
            continue
        ours, theirs = (tables.get((names.get(which, which), claim.task), {}) for which in (claim.a, claim.b))
        if len(ours) < 2 or len(theirs) < 2:
            continue
        (low, high), (other_low, other_high) = (
            (min(v for v, _ in scores.values()), max(v for v, _ in scores.values())) for scores in (ours, theirs)
        )
        if low <= other_high and other_low <= high:
            yield Found(
                f"{claim.a} against {claim.b}: {claim.task}",
                f"claimed {claim.claim}, but over the templates one lies in {percent(low)} to {percent(high)} and the "
                f"other in {percent(other_low)} to {percent(other_high)}",
            )


def _different_examples(study: Study) -> Iterator[Word]:
    together: dict[str, list[tuple[Log, Task]]] = defaultdict(list)
    for log, task, _ in study.tasks():
        if task.fewshot is not None:
            together[task.name].append((log, task))
    for name, both in together.items():
        shots = {task.fewshot for _, task in both}
        if len(shots) > 1 and len({log.model for log, _ in both}) > 1:
            said = some([f"{log.model} with {task.fewshot}" for log, task in both])
            yield Found(name, f"models side by side under different numbers of examples: {said}")
