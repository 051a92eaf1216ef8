"""The scorer misses right answers, or passes empty ones."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word, some
from inazuma.evaluate.audit.log import Sample, Study, Task
from inazuma.evaluate.audit.text import final_answer, last_number, same_answer

NUMBER = "V06"
TITLE = "Extraction or metric bug"
SOURCE = (
    "OpenCompass#2356: GPQA 76.3 by its pattern, 85.9 by hand; DROP: a number before a line break was scored wrong; "
    "lm-evaluation-harness scores GSM8K apart under strict-match and flexible-extract"
)
FIX = "repair the extraction, score again, and report answers without an extractable answer apart"

_TOLERATED = 0.01
_NO_ANSWER = 0.05


def check(study: Study) -> Iterator[Word]:
    tasks = [(task, name) for _, task, name in study.tasks() if task.generates and task.samples]
    if not tasks:
        yield Nothing("no task generates text")
    for task, name in tasks:
        known = [s for s in task.samples if s.answer is not None and s.target is not None and s.score is not None]
        if not known:
            yield Undecided(name, "the log does not hold answers with their keys and scores")
            continue
        yield from _missed(known, task, name)
        yield from _passed(known, task, name)
        yield from _unextracted(task, name)


def key_text(sample: Sample) -> str:
    """The key as a text: the choice behind a letter, the last part of a reasoned one."""
    target = sample.target or ""
    return target.rpartition("####")[2].strip() if "####" in target else target


def _says_key(sample: Sample, said: str | None) -> bool:
    if not said:
        return False
    keys = [key_text(sample)]
    if sample.choices and sample.gold is not None and 0 <= sample.gold < len(sample.choices):
        keys += [sample.choices[sample.gold], chr(ord("A") + sample.gold)]
    return any(same_answer(said, key) for key in keys if key)


def _second_reading(sample: Sample) -> bool:
    """Where the answer names its result, that; else the last number, as GSM8K's flexible-extract reads it."""
    answer = sample.answer or ""
    return _says_key(sample, final_answer(answer) or last_number(answer))


def _missed(known: list[Sample], task: Task, name: str) -> Iterator[Word]:
    wrong = [s for s in known if s.score == 0 and s.outcome in (None, "wrong", "no_answer")]
    certain = [s for s in wrong if _says_key(s, s.extracted) or _says_key(s, s.answer)]
    second = [s for s in wrong if s not in certain and _second_reading(s)]
    hit = certain + second
    # One answer alone that only a second reading finds may be that reading's mistake.
    if certain or (len(second) >= 2 and len(second) > _TOLERATED * len(task.samples)):
        sample = hit[0]
        said = (sample.extracted or sample.answer or "").strip().replace("\n", " ")[-80:]
        yield Found(
            name,
            f"{len(hit)} of {len(task.samples)} answers give the key and are scored wrong: "
            f"{some([s.item for s in hit])}; "
            f"{sample.item}: key {key_text(sample)!r}, answer ending in {said!r}",
            tuple(s.item for s in hit),
        )


def _passed(known: list[Sample], task: Task, name: str) -> Iterator[Word]:
    hit = tuple(s.item for s in known if s.score == 1 and not (s.answer or "").strip() and key_text(s).strip())
    if hit:
        yield Found(name, f"{len(hit)} of {len(task.samples)} empty answers are scored right: {some(hit)}", hit)


def _unextracted(task: Task, name: str) -> Iterator[Word]:
    """An extractor that finds nothing in many answers; where that is an outcome of its own, it is reported."""
    if any(sample.outcome is not None for sample in task.samples):
        return
    filtered = [s for s in task.samples if s.extracted is not None and (s.answer or "").strip()]
    lost = tuple(s.item for s in filtered if s.extracted.strip().casefold() in ("[invalid]", "[no answer]", "n/a"))
    if filtered and len(lost) > _NO_ANSWER * len(filtered):
        share = f"{len(lost)} of {len(filtered)} answers"
        yield Found(name, f"nothing was extracted from {share}, and they count as wrong: {some(lost)}", lost)
