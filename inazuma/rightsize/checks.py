"""What can be said of the data before anything is trained on it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from inazuma.rightsize.linear import fit_linear, vectorizer_choices
from inazuma.rightsize.splits import Finding, Splits
from inazuma.rightsize.table import LONGEST_TEXT, MOST_CHARACTERS, Counts, Example, shortened
from inazuma.rightsize.task import Task
from inazuma.runs.intervals import items_needed, minimum_detectable_effect

DISCORDANT = 0.10
"""The share of items on which two good models differ, as long as nothing is known of them."""
MOST_CANDIDATES = 20
_READ_FOR_NOISE = 2_000_000
"""Characters of all texts together that the search for wrong labels reads; of long ones the beginning and the end."""
_NAMED = 0.9
"""The share of texts that spell out their own label, and of spelt-out labels that are right, which is called a leak."""


def minimum_detectable(items: int, confidence: float, discordant: float = DISCORDANT) -> float:
    """The smallest difference of two paired shares that `items` show with 80 % power, one-sided.

    The variance of a paired difference of 0/1 outcomes is at most their discordance (Miller, arXiv 2411.00640,
    section 5); one-sided at `confidence` is two-sided at 2 `confidence` - 1.
    """
    return minimum_detectable_effect(math.sqrt(discordant / items), level=2 * confidence - 1)


def overview(task: Task, counts: Counts, splits: Splits) -> dict[str, Any]:
    """Counts, class shares, and what differences the test split can show."""
    tested = len(splits["test"])
    shares = counts.targets.most_common(20)
    return {
        "rows": counts.rows,
        "empty": counts.empty,
        "unlabelled": counts.unlabelled,
        "kept": sum(map(len, splits.parts.values())),
        "splits": {name: len(part) for name, part in splits.parts.items()},
        "classes": len(counts.targets),
        "class_counts": [[label, count] for label, count in shares],
        "minimum_detectable": minimum_detectable(tested, task.confidence),
        "enough_for_margin": math.ceil(items_needed(task.margin, DISCORDANT, 1 - task.confidence)),
    }


def findings(task: Task, counts: Counts, splits: Splits) -> list[Finding]:
    """What the splits found, and what else a reader must know before believing a figure."""
    found = list(splits.findings)
    if counts.empty:
        found.append(Finding("empty texts", f"{counts.empty} of {counts.rows} rows have no text; left out", []))
    if counts.unlabelled:
        found.append(Finding("no answer", f"{counts.unlabelled} of {counts.rows} rows have no answer; left out", []))
    usable, kept = counts.rows - counts.empty - counts.unlabelled, counts.kept
    if kept < usable:
        why = f"max_rows = {task.max_rows}" if kept == task.max_rows else f"{MOST_CHARACTERS:,} characters in all"
        message = f"{kept} of {usable} usable rows were kept ({why}), a random sample"
        found.append(Finding("sample", message, []))
    if counts.shortened:
        message = f"{counts.shortened} texts have over {LONGEST_TEXT:,} characters; every rung sees beginning and end"
        found.append(Finding("long texts", message, []))
    rare = [label for label, count in counts.targets.items() if count < 10]
    if rare:
        named = ", ".join(repr(label) for label in rare[:5])
        found.append(Finding("rare labels", f"{len(rare)} labels have fewer than 10 rows: {named}", []))
    if task.kind == "classification":
        if leak := spelt_out(splits["train"]):
            found.append(leak)
        if noise := noise_candidates(task, splits["train"]):
            found.append(noise)
    return found


def spelt_out(examples: list[Example]) -> Finding | None:
    """The leak of texts that contain their own label as a word, where they nearly all do and nearly never another."""
    labels = sorted({e.target for e in examples if len(e.target) >= 3}, key=len, reverse=True)
    if not labels:
        return None
    pattern = re.compile(r"(?<!\w)(" + "|".join(re.escape(label.casefold()) for label in labels) + r")(?!\w)")
    own, other, rows = 0, 0, []
    for example in examples:
        named = set(pattern.findall(example.text.casefold()))
        if example.target.casefold() in named:
            own += 1
            rows.append(example.row)
        other += bool(named - {example.target.casefold()})
    if own < _NAMED * len(examples) or other > (1 - _NAMED) * len(examples):
        return None
    message = f"{100 * own / len(examples):.0f} % of the texts spell out their own label: a leak, unless they will too"
    return Finding("leak: label in the text", message, rows[:MOST_CANDIDATES])


def noise_candidates(task: Task, examples: list[Example]) -> Finding | None:
    """Training rows whose label is probably wrong, the most probable first.

    Confident learning (Northcutt, Jiang and Chuang, arXiv 1911.00068): a row is a candidate where a model that did not
    see it gives another class at least the confidence that the class's own rows get on average.
    """
    classes = Counter(example.target for example in examples)
    examples = [example for example in examples if classes[example.target] >= 4]
    if len({example.target for example in examples}) < 2:
        return None
    names = sorted({example.target for example in examples})
    targets = np.array([names.index(example.target) for example in examples])
    room = max(200, _READ_FOR_NOISE // len(examples))
    texts = [shortened(example.text, room) for example in examples]
    # Folds by the place within each class: every fold sees every class.
    order = np.argsort(targets, kind="stable")
    fold = np.empty(len(examples), dtype=int)
    fold[order] = np.arange(len(examples)) % 3
    probabilities = np.zeros((len(examples), len(names)))
    for k in range(3):
        learnt = np.flatnonzero(fold != k)
        model = fit_linear(
            [texts[i] for i in learnt], [examples[i].target for i in learnt], vectorizer_choices()[1], seed=task.seed
        )
        columns = [names.index(name) for name in model.classes]
        held = np.flatnonzero(fold == k)
        probabilities[np.ix_(held, columns)] = model.probabilities([texts[i] for i in held])
    own = probabilities[np.arange(len(examples)), targets]
    threshold = np.array([own[targets == c].mean() for c in range(len(names))])
    confident = np.where(probabilities >= threshold, probabilities, 0.0)
    confident[np.arange(len(examples)), targets] = 0.0
    suspect = np.flatnonzero((confident.max(axis=1) > 0) & (own < threshold[targets]))
    if not len(suspect):
        return None
    suspect = suspect[np.argsort(own[suspect], kind="stable")]
    best = examples[suspect[0]]
    other = names[int(confident[suspect[0]].argmax())]
    message = f"{len(suspect)} labels may be wrong; first look at row {best.row}: {best.target!r}, perhaps {other!r}"
    return Finding("label noise", message, [examples[i].row for i in suspect[:MOST_CANDIDATES]])
