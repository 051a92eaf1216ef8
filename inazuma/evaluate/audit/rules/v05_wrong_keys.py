"""Keys that are wrong, missing or ambiguous."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study, Task
from inazuma.evaluate.audit.measure import scored, values
from inazuma.evaluate.audit.text import normal, same_answer

NUMBER = "V05"
TITLE = "Wrong or ambiguous keys"
SOURCE = (
    "Platinum benchmarks (arXiv 2502.03461): GSM8K-Platinum keeps 1,209 items; mmlu_pro_clean drops 1,343 of 12,032 "
    "(lm-evaluation-harness PR#3952)"
)
FIX = "correct or remove these items, and report the score with and without them"

_STRONG = 0.8
_MODELS = 3


def check(study: Study) -> Iterator[Word]:
    together: dict[str, list[Task]] = defaultdict(list)
    for _, task, name in study.tasks():
        if not task.samples:
            continue
        together[task.name].append(task)
        if all(sample.target is None and sample.choices is None for sample in task.samples):
            yield Undecided(name, "the log holds no keys")
            continue
        yield from _choices(task, name)
        yield from _twice(task, name)
    for name, tasks in together.items():
        yield from _all_wrong_alike(tasks, name)


def _choices(task: Task, name: str) -> Iterator[Word]:
    bad: dict[str, str] = {}
    for sample in task.samples:
        if not sample.choices or sample.outcome == "invalid_item":
            continue
        if sample.gold is not None and not 0 <= sample.gold < len(sample.choices):
            bad[sample.item] = f"the key is choice {sample.gold + 1} of {len(sample.choices)}"
        elif sample.gold is None and sample.target is not None and not _among(sample.target, sample.choices):
            bad[sample.item] = f"the key {sample.target!r} is not among the choices"
        elif sample.gold is not None:
            key = normal(sample.choices[sample.gold])
            # Choices that differ in case or punctuation only may be what is asked.
            exact = [choice.strip() for choice in sample.choices]
            if key and exact.count(exact[sample.gold]) > 1:
                bad[sample.item] = f"the key {sample.choices[sample.gold]!r} stands twice among the choices"
    if bad:
        first = next(iter(bad))
        yield Found(
            name, f"{len(bad)} of {len(task.samples)} keys: {some(list(bad))}; {first}: {bad[first]}", tuple(bad)
        )


def _among(target: str, choices: tuple[str, ...]) -> bool:
    letter = len(target.strip()) == 1 and 0 <= ord(target.strip().upper()) - ord("A") < len(choices)
    return letter or any(normal(target) == normal(choice) for choice in choices)


def _twice(task: Task, name: str) -> Iterator[Word]:
    keys: dict[tuple[str, tuple[str, ...] | None], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sample in task.samples:
        asked = sample.question or sample.prompt
        if asked and sample.target is not None and sample.outcome != "invalid_item":
            options = None if sample.choices is None else tuple(sorted(map(normal, sample.choices)))
            keys[normal(asked), options][normal(sample.target)].append(sample.item)
    bad = [items for targets in keys.values() if len(targets) > 1 for items in targets.values()]
    if bad:
        items = tuple(dict.fromkeys(item for some_items in bad for item in some_items))
        yield Found(name, f"the same question stands there with different keys: {some(items)}", items)


def _all_wrong_alike(tasks: list[Task], name: str) -> Iterator[Word]:
    """What every strong model gets wrong with one and the same answer is more likely the key's mistake."""
    strong = [t for t in tasks if scored(t.samples) and values(t.samples).mean() >= _STRONG]
    if len(strong) < _MODELS:
        return
    given: dict[str, list[tuple[str, float, str]]] = defaultdict(list)
    for task in strong:
        for sample in task.samples:
            said = sample.extracted or sample.answer
            if said and sample.score is not None and sample.target is not None and sample.repeat == 0:
                given[sample.item].append((normal(said), sample.score, sample.target))
    bad = tuple(
        item
        for item, said in given.items()
        if len(said) == len(strong)
        and all(score == 0 for _, score, _ in said)
        and len({answer for answer, _, _ in said}) == 1
        and not same_answer(said[0][0], said[0][2])
    )
    if bad:
        text = f"{len(strong)} models of at least {_STRONG:.0%} agree on an answer that is not the key: {some(bad)}"
        yield Found(name, text, bad)
