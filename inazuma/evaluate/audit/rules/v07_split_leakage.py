"""Test items, or their groups, are in the training split or among the examples of the prompt."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.corpora import near_duplicates, read_texts
from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study, Task
from inazuma.evaluate.audit.text import normal, words

NUMBER = "V07"
TITLE = "Leakage between splits"
SOURCE = (
    "Kapoor and Narayanan, Leakage and the reproducibility crisis in machine-learning-based science (2023): 294 papers"
)
FIX = "split by group, drop near duplicates, fit everything on the training split only, draw examples from it"

_SHORTEST = 5
_PROMPTS = 300


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
    """Questions of the test that stand in other items' prompts as examples, or in their own twice."""
    if task.fewshot == 0:
        return
    asked = {s.item: normal(s.question) for s in task.samples if s.question and len(words(s.question)) >= _SHORTEST}
    if not asked or len(set(asked.values())) < 2:
        return
    leaked: dict[str, None] = {}
    # Where several items share a text (a passage), finding it elsewhere says nothing.
    own = {question: item for item, question in asked.items() if list(asked.values()).count(question) == 1}
    for sample in task.samples[:_PROMPTS]:
        if sample.prompt is None or sample.item not in asked:
            continue
        prompt = normal(sample.prompt)
        if prompt == asked[sample.item]:
            continue
        for question, item in own.items():
            if prompt.count(question) > (1 if item == sample.item else 0) and not (
                item != sample.item and question in asked[sample.item]
            ):
                leaked[item] = None
    if leaked:
        items = tuple(leaked)
        yield Found(name, f"{len(items)} test items stand among the examples of a prompt: {some(items)}", items)
