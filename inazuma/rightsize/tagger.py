"""The small extractor: a logistic regression on the letters around each letter says which field it begins or goes on
with, and another on the whole text fills in each enum. No spaces are needed between words."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from inazuma.files import read_json, write_json
from inazuma.rightsize.linear import LinearText, fit_linear, regression, vectorizer_choices
from inazuma.rightsize.predictor import RUNG, Answer, write_kind
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task, field_kind

CHOICES = [{"C": 0.1, "window": 3}, {"C": 1.0, "window": 3}, {"C": 0.1, "window": 2}]
OUTSIDE = "O"


def features(text: str, window: int) -> list[list[str]]:
    """What is seen of each letter: the letters and pairs of letters within `window`, and what kind they are of."""
    kinds = [unicodedata.name(c, "?").split()[0][:4] for c in text]
    rows = []
    for i in range(len(text)):
        seen = []
        for k in range(-window, window + 1):
            j = i + k
            letter = text[j] if 0 <= j < len(text) else "\u2400"
            after = text[j + 1] if 0 <= j + 1 < len(text) else "\u2400"
            seen += [f"{k}{letter}", f"{k}{letter}{after}", f"{k}#{kinds[j] if 0 <= j < len(text) else ''}"]
        rows.append(seen)
    return rows


def _same(row: list[str]) -> list[str]:
    return row


class Tagger:
    def __init__(
        self,
        fields: dict[str, str],
        window: int,
        vectorizer: CountVectorizer,
        model: LogisticRegression,
        enums: dict[str, LinearText],
    ):
        self.fields, self.window, self.vectorizer, self.model, self.enums = fields, window, vectorizer, model, enums

    @classmethod
    def fit(cls, task: Task, examples: Sequence[Example], choice: dict[str, Any]) -> Tagger:
        fields = {name: field_kind(name, kind) for name, kind in task.schema["properties"].items()}
        rows, tags = [], []
        for example in examples:
            rows += features(example.text, choice["window"])
            tags += tag(example.text, json.loads(example.target), fields)
        vectorizer = CountVectorizer(analyzer=_same, binary=True, min_df=2)
        model = LogisticRegression(C=choice["C"], max_iter=300, random_state=task.seed)
        model.fit(vectorizer.fit_transform(rows), tags)
        enums = {}
        for name, kind in fields.items():
            values = [json.loads(example.target)[name] for example in examples]
            if kind == "enum" and len(set(values)) > 1:
                texts = [example.text for example in examples]
                enums[name] = fit_linear(texts, values, vectorizer_choices()[1], seed=task.seed)
        return cls(fields, choice["window"], vectorizer, model, enums)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        rows = [row for text in texts for row in features(text, self.window)]
        names = [str(name) for name in self.model.classes_]
        found = self.model.predict_proba(self.vectorizer.transform(rows)) if rows else np.zeros((0, len(names)))
        filled = {name: model.answer(texts) for name, model in self.enums.items()}
        answers, start = [], 0
        for i, text in enumerate(texts):
            here = found[start : start + len(text)]
            start += len(text)
            tags = likeliest(here, names)
            result = spans(text, tags, self.fields)
            result |= {name: given[i].text for name, given in filled.items()}
            # The least certain letter is how sure the whole is.
            answers.append(Answer(json.dumps(result, ensure_ascii=False), float(here.max(axis=1).min(initial=1.0))))
        return answers

    def save(self, folder: Path) -> None:
        classes = [str(name) for name in self.model.classes_]
        write_kind(folder, "tagger", fields=self.fields, window=self.window, classes=classes, enums=sorted(self.enums))
        write_json(folder / "vocabulary.json", {term: int(i) for term, i in self.vectorizer.vocabulary_.items()})
        weights = {"coef": self.model.coef_, "intercept": self.model.intercept_}
        # safetensors writes the memory as it lies, and scikit-learn's lies in Fortran's order.
        save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, folder / "tagger.safetensors")
        for name, model in self.enums.items():
            (folder / name).mkdir()
            model.save(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Tagger:
        kept, tensors = read_json(folder / RUNG), load_file(folder / "tagger.safetensors")
        vectorizer = CountVectorizer(analyzer=_same, binary=True, vocabulary=read_json(folder / "vocabulary.json"))
        model = regression(kept["classes"], tensors["coef"], tensors["intercept"])
        enums = {name: LinearText.load(folder / name) for name in kept["enums"]}
        return cls(kept["fields"], kept["window"], vectorizer, model, enums)


def likeliest(probabilities: np.ndarray, names: list[str]) -> list[str]:
    """The likeliest row of tags in which every field that goes on has begun (Viterbi), of `[letters, tags]`.

    Letter by letter the likeliest tags would leave pieces of values behind.
    """
    if not len(probabilities):
        return []
    may = np.array([[not b.startswith("I-") or a[2:] == b[2:] for b in names] for a in names])  # from a to b
    step = np.where(may, 0.0, -np.inf)
    scores = np.log(np.maximum(probabilities, 1e-12))
    best = np.where([name.startswith("I-") for name in names], -np.inf, scores[0])
    came = np.zeros(scores.shape, dtype=int)
    for i in range(1, len(scores)):
        ways = best[:, None] + step
        came[i] = ways.argmax(axis=0)
        best = ways.max(axis=0) + scores[i]
    row = [int(best.argmax())]
    for i in range(len(scores) - 1, 0, -1):
        row.append(int(came[i][row[-1]]))
    return [names[c] for c in reversed(row)]


def tag(text: str, target: dict[str, Any], fields: dict[str, str]) -> list[str]:
    """A tag for each letter: B-field where a value begins, I-field where it goes on, O elsewhere; longer values win."""
    tags = [OUTSIDE] * len(text)
    values = [
        (value, name)
        for name, kind in fields.items()
        if kind != "enum"
        for value in (target[name] if kind == "spans" else [target[name]])
        if value
    ]
    for value, name in sorted(values, key=lambda pair: (-len(pair[0]), pair)):
        start = text.find(value)
        while start >= 0:
            stop = start + len(value)
            if all(one == OUTSIDE for one in tags[start:stop]):
                tags[start:stop] = [f"B-{name}"] + [f"I-{name}"] * (len(value) - 1)
            start = text.find(value, stop)
    return tags


def spans(text: str, tags: Sequence[str], fields: dict[str, str]) -> dict[str, Any]:
    """The values that tags mark; a tag that goes on with another field than before begins a value."""
    found: dict[str, list[str]] = {name: [] for name in fields}
    name, start = "", 0
    for i, one in enumerate([*tags, OUTSIDE]):
        goes_on = one.startswith("I-") and one[2:] == name
        if name and not goes_on:
            found[name].append(text[start:i])
            name = ""
        if one != OUTSIDE and not goes_on:
            name, start = one[2:], i
    result: dict[str, Any] = {}
    for field, kind in fields.items():
        values = found[field]
        result[field] = sorted(set(values)) if kind == "spans" else (values[0] if values else "")
    return result
