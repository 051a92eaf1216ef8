"""Test items, or their groups, are in the training split or among the examples of the prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from inazuma.evaluate.audit.corpora import near_duplicates, read_texts
from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study, Task
from inazuma.evaluate.audit.text import normal
from inazuma.evaluate.overlap import words_of

NUMBER = "V07"
TITLE = "Leakage between splits"
SOURCE = (
    "Kapoor and Narayanan, Leakage and the reproducibility crisis in machine-learning-based science (2023): 294 papers"
)
FIX = "split by group, drop near duplicates, fit everything on the training split only, draw examples from it"

_SHORTEST = 5
_PROMPTS, _NEAR = 300, 40


def check(study: Study) -> Iterator[Word]:
    for _, task, name in study.tasks():
        yield from _examples(task, name)
    texts = study.declared.texts
    if texts is None or not texts.train_split or not texts.test_split:
        yield Undecided("splits", "study.yaml names no train_split and test_split texts")
        return
    folder = study.path if study.path.is_dir() else study.path.parent
    train, test = read_texts(folder, texts.train_split), read_texts(folder, texts.test_split)
    pairs = near_duplicates([text for text, _ in test], [text for text, _ in train])
    if pairs:
        items = tuple(f"test {at + 1}" for at in pairs)
        yield Found(
            "splits", f"{len(pairs)} of {len(test)} test texts stand in the training split too: {some(items)}", items
        )
    groups = {group for _, group in train if group} & {group for _, group in test if group}
    if groups:
        yield Found("splits", f"{len(groups)} groups are in both splits: {some(sorted(groups))}", tuple(sorted(groups)))
    fitted = [what for what in texts.fitted_on if what != "train"]
    if fitted:
        yield Found("splits", f"fitted on {some(fitted)}, not on the training split only")


def _examples(task: Task, name: str) -> Iterator[Word]:
    """Questions of the test that stand in a prompt, their own or another's, with the answer after them."""
    if task.fewshot == 0:
        return
    asked = {
        s.item: (normal(s.question), s.target)
        for s in task.samples
        if s.question and s.target and len(words_of(s.question)) >= _SHORTEST
    }
    # A text that several items share (a passage) or that is part of another question says nothing.
    counts = Counter(question for question, _ in asked.values())
    leaked: dict[str, None] = {}
    for sample in task.samples[:_PROMPTS]:
        if sample.prompt is None or sample.item not in asked:
            continue
        own = asked[sample.item][0]
        examples = normal(sample.prompt).rpartition(own)[0]
        if len(examples) < _SHORTEST:
            continue
        for item, (question, target) in asked.items():
            after = examples.partition(question)[2] if counts[question] == 1 else ""
            if after and set(words_of(target)) <= set(words_of(after[: _NEAR + len(target)])):
                leaked[item] = None
    if leaked:
        items = tuple(leaked)
        yield Found(name, f"{len(items)} test items stand among the examples of a prompt: {some(items)}", items)
