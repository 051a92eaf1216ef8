"""Distillation: a larger rung labels texts that nobody labelled, and the small Transformer learns from them too.

The student sees the teacher's answers as if they were labels (Kim and Rush, arXiv 1606.07947, section 3.2), so that any
teacher serves, one that gives no probabilities included.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inazuma.errors import UserError
from inazuma.rightsize.predictor import load
from inazuma.rightsize.splits import Splits, normal
from inazuma.rightsize.table import MOST_CHARACTERS, TEXT_NAMES, Example, records, shortened
from inazuma.rightsize.task import Task


def taught(task: Task, splits: Splits, teacher: Path) -> list[Example]:
    """The training examples, and the unlabelled texts with the teacher's answers; a text of another split never."""
    column, texts, size = task.text, [], 0
    known = {normal(example.text) for part in splits.parts.values() for example in part}
    for number, record in records(task.unlabelled):
        if column is None or column not in record:
            column = next((name for name in TEXT_NAMES if name in record), None)
        if column is None or column not in record:
            raise UserError(f"{task.unlabelled}:{number}: no column of texts; its columns are {', '.join(record)}")
        text = shortened(str(record[column] or "").strip())
        if text and normal(text) not in known:
            known.add(normal(text))
            texts.append(text)
            size += len(text)
        if len(texts) >= task.max_rows or size >= MOST_CHARACTERS:
            break
    answers = load(teacher).answer(texts)
    train = splits["train"]
    new = [
        replace(train[0], row=0, text=text, target=answer.text, group=None, time=None, split=None)
        for text, answer in zip(texts, answers, strict=True)
        if answer.text is not None
    ]
    return [*train, *new]
