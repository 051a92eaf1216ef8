"""The same question asked twice gets another answer, and no one says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Log, Sample, Study, Task
from inazuma.evaluate.audit.measure import percent

NUMBER = "V19"
TITLE = "Non-determinism that is not reported"
SOURCE = (
    "Thinking Machines 2025: 80 different completions of 1,000 at temperature 0; lm-evaluation-harness#3055: BoolQ "
    "0.7797 and 0.8018 by batch size"
)
FIX = "ask a canary subset again, alone and in a batch; report the flip rate; record batch size, type, kernels, device"


def check(study: Study) -> Iterator[Word]:
    reported = any(one.reported for one in study.declared.repeatability)
    looked = bool(study.declared.repeatability)
    for one in study.declared.repeatability:
        if one.flips and not one.reported:
            yield Found(one.what, f"{one.flips} of {one.n} items flip and the report does not say so")
    for log, task, name in study.tasks():
        groups = defaultdict(list)
        for sample in task.samples:
            groups[sample.item].append(sample)
        twice = [(group[0], other) for group in groups.values() for other in group[1:]]
        if log.temperature == 0 and twice:
            looked = True
            if not reported:
                yield from _flips(name, f"{len(groups)} items were asked again at temperature 0", twice)
    for (log, task), (other, again) in combinations([(log, task) for log, task, _ in study.tasks()], 2):
        if not _same_question(log, task, other, again):
            continue
        looked = True
        if not reported:
            theirs = {sample.key: sample for sample in again.samples}
            twice = [(sample, theirs[sample.key]) for sample in task.samples if sample.key in theirs]
            sizes = (
                f" (batch sizes {log.batch_size} and {other.batch_size})" if log.batch_size != other.batch_size else ""
            )
            yield from _flips(
                f"{log.name}, {other.name}: {task.name}", f"the same model at temperature 0{sizes}", twice
            )
    if not looked:
        yield Undecided("repeatability", "nothing was asked twice, so nothing shows whether answers repeat")


def _same_question(log: Log, task: Task, other: Log, again: Task) -> bool:
    return (
        log is not other
        and log.model is not None
        and (log.model, task.name, task.fewshot) == (other.model, again.name, again.fewshot)
        and log.temperature == other.temperature == 0
    )


def _flips(name: str, what: str, twice: Sequence[tuple[Sample, Sample]]) -> Iterator[Word]:
    # Another prompt (template, examples) may well get another answer.
    same = [(a, b) for a, b in twice if a.prompt == b.prompt and a.template == b.template]
    flips = [a.item for a, b in same if a.score is not None and b.score is not None and a.score != b.score]
    texts = [a.item for a, b in same if a.answer is not None and b.answer is not None and a.answer != b.answer]
    if flips or texts:
        items = tuple(dict.fromkeys([*flips, *texts]))
        yield Found(
            name,
            f"{what}: {len(flips)} of {len(same)} scores ({percent(len(flips) / len(same))}) and {len(texts)} texts "
            f"differ: {some(items)}",
            items,
        )
