"""TF-IDF and logistic regression, both scikit-learn's, kept as JSON and safetensors: nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from inazuma.files import read_json, write_json
from inazuma.rightsize.predictor import RUNG, Answer, write_kind

MOST_FEATURES = 100_000


def vectorizer_choices() -> list[dict[str, Any]]:
    """What the tuning tries, in this order: pieces of words (which need no spaces between them), and words."""
    words = {"analyzer": "word", "ngram_range": [1, 2]}
    letters = {"analyzer": "char_wb", "ngram_range": [1, 4]}
    return [one | {"C": c} for c in (10.0, 1.0, 100.0) for one in (words, letters)]


class LinearText:
    """Texts to labels. The vectorizer and the regression are scikit-learn's own, so the answers are too."""

    def __init__(self, vectorizer: TfidfVectorizer, model: LogisticRegression, several: bool = False):
        self.vectorizer, self.model, self.several = vectorizer, model, several

    @property
    def classes(self) -> list[str]:
        return [str(label) for label in self.model.classes_]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float64 `[texts, classes]`; with several labels each column is a probability of its own."""
        return label_probabilities(self.model, self.vectorizer.transform(texts), self.several)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        return label_answers(self.classes, self.probabilities(texts), self.several)

    def save(self, folder: Path) -> None:
        kept = save_vectorizer(self.vectorizer, folder)
        write_kind(folder, "linear", several=self.several, vectorizer=kept, classes=self.classes)
        tensors = {"idf": self.vectorizer.idf_, "coef": self.model.coef_, "intercept": self.model.intercept_}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "linear.safetensors")

    @classmethod
    def load(cls, folder: Path) -> LinearText:
        kept, tensors = read_json(folder / RUNG), load_file(folder / "linear.safetensors")
        vectorizer = load_vectorizer(kept["vectorizer"], folder, tensors["idf"])
        return cls(vectorizer, regression(kept["classes"], tensors["coef"], tensors["intercept"]), kept["several"])


def save_vectorizer(vectorizer: TfidfVectorizer, folder: Path) -> dict[str, Any]:
    """Writes the vocabulary; returns the settings that `load_vectorizer` wants back, with `vectorizer.idf_`."""
    vocabulary = {term: int(place) for term, place in vectorizer.vocabulary_.items()}
    write_json(folder / "vocabulary.json", vocabulary)
    settings = vectorizer.get_params()
    return {name: settings[name] for name in ("analyzer", "ngram_range", "sublinear_tf", "max_features")}


def load_vectorizer(settings: dict[str, Any], folder: Path, idf: np.ndarray) -> TfidfVectorizer:
    settings = settings | {"ngram_range": tuple(settings["ngram_range"])}
    vectorizer = TfidfVectorizer(**settings, vocabulary=read_json(folder / "vocabulary.json"))
    vectorizer.idf_ = idf
    return vectorizer


def regression(classes: Sequence[str], coef: np.ndarray, intercept: np.ndarray) -> LogisticRegression:
    """scikit-learn's regression with these weights."""
    model = LogisticRegression()
    model.classes_, model.coef_, model.intercept_ = np.array(classes), coef, intercept
    model.n_features_in_ = coef.shape[1]
    return model


def label_probabilities(model: LogisticRegression, features: Any, several: bool) -> np.ndarray:
    """float64 `[texts, classes]` of features `[texts, width]`; with `several` each column is one of its own."""
    if not several:
        return model.predict_proba(features)
    scores = features @ model.coef_.T + model.intercept_
    return 1 / (1 + np.exp(-scores))


def label_answers(classes: Sequence[str], probabilities: np.ndarray, several: bool) -> list[Answer]:
    """The likeliest label of each text or, with `several`, the JSON list of all that are likelier than not."""
    if several:
        # The least certain of the decisions is how sure the whole is.
        return [
            Answer(
                json.dumps([c for c, x in zip(classes, row, strict=True) if x > 0.5], ensure_ascii=False),
                float(np.abs(row - 0.5).min() + 0.5),
            )
            for row in probabilities
        ]
    best = probabilities.argmax(axis=1)
    return [Answer(classes[c], float(row[c])) for c, row in zip(best, probabilities, strict=True)]


def fit_linear(
    texts: Sequence[str], targets: Sequence[str], choice: dict[str, Any], *, seed: int, several: bool = False
) -> LinearText:
    """Fits one of `vectorizer_choices`; with `several` the targets are JSON lists, one yes-or-no regression a label."""
    vectorizer = TfidfVectorizer(
        analyzer=choice["analyzer"],
        ngram_range=tuple(choice["ngram_range"]),
        sublinear_tf=True,
        max_features=MOST_FEATURES,
    )
    features = vectorizer.fit_transform(texts)
    return LinearText(vectorizer, fit_regression(features, targets, choice["C"], seed=seed, several=several), several)


def fit_regression(features: Any, targets: Sequence[str], c: float, *, seed: int, several: bool) -> LogisticRegression:
    """A regression on features `[texts, width]`, of labels or, with `several`, of JSON lists of them."""
    if not several:
        return LogisticRegression(C=c, max_iter=1000, random_state=seed).fit(features, targets)
    lists = [set(json.loads(target)) for target in targets]
    names = sorted(set().union(*lists))
    rows, biases = [], []
    for name in names:
        has = np.array([name in one for one in lists])
        if has.all():
            rows.append(np.zeros(features.shape[1]))
            biases.append(10.0)
            continue
        one = LogisticRegression(C=c, max_iter=1000, random_state=seed).fit(features, has)
        rows.append(one.coef_[0])
        biases.append(float(one.intercept_[0]))
    return regression(names, np.array(rows), np.array(biases))
