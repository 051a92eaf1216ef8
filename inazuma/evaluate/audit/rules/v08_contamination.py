"""Items stand in what the model was trained on."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.corpora import read_texts
from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.text import grams
from inazuma.evaluate.overlap import words_of

NUMBER = "V08"
TITLE = "Contamination by the training texts"
SOURCE = (
    "Overlap of 13 words, as in Brown et al. 2020 (GPT-3), appendix C; guessing from outside is no better than chance "
    "(arXiv 2410.18966, 2604.19561)"
)
FIX = "report the score on the overlapping and on the clean items apart, or use items newer than the training texts"

_RUN = 13
_SHORTEST = 6
"""A whole item of fewer words may stand in any corpus by chance."""


def check(study: Study) -> Iterator[Word]:
    texts = study.declared.texts
    if texts is None or not texts.pretraining:
        yield Undecided("training texts", "the training texts are not here, so no item can be said to be clean")
        return
    folder = study.path if study.path.is_dir() else study.path.parent
    asked = {
        (name, sample.item): sample.question or sample.prompt or ""
        for _, task, name in study.tasks()
        for sample in task.samples
    }
    runs = {key: grams(text, _RUN) for key, text in asked.items() if len(words_of(text)) >= _SHORTEST}
    sizes = {len(run) for own in runs.values() for run in own}
    wanted = {run for own in runs.values() for run in own}
    seen: set[tuple[str, ...]] = set()
    for text, _ in read_texts(folder, texts.pretraining):
        found = words_of(text)
        for size in sizes:
            seen |= {run for at in range(len(found) - size + 1) if (run := tuple(found[at : at + size])) in wanted}
    short = len(asked) - len(runs)
    for name in dict.fromkeys(name for name, _ in asked):
        hit = tuple(item for (task, item), own in runs.items() if task == name and own & seen)
        if hit and not texts.clean_part_reported:
            n = sum(task == name for task, _ in asked)
            yield Found(name, f"{len(hit)} of {n} items share {_RUN} words with the training texts: {some(hit)}", hit)
    if short:
        yield Undecided("training texts", f"{short} items are shorter than {_SHORTEST} words, too short to tell")
