"""The scikit-learn rung is scikit-learn, to the last digit, after it was saved without a pickle too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer

from inazuma.rightsize import load
from inazuma.rightsize.linear import MOST_FEATURES, fit_linear, vectorizer_choices
from inazuma.rightsize.nearest import Nearest
from inazuma.rightsize.table import Example
from inazuma.rightsize.tagger import Tagger, spans, tag
from inazuma.rightsize.task import Task
from tests.rightsize.planted import noisy

TRAIN, TEST = noisy(300), noisy(200, seed=5)
TEXTS, LABELS = [row["text"] for row in TRAIN], [row["label"] for row in TRAIN]
ASKED, WANTED = [row["text"] for row in TEST], [row["label"] for row in TEST]


def vectorizer(choice):
    return TfidfVectorizer(
        analyzer=choice["analyzer"],
        ngram_range=tuple(choice["ngram_range"]),
        sublinear_tf=True,
        max_features=MOST_FEATURES,
    )


@pytest.mark.parametrize("choice", vectorizer_choices()[:2], ids=lambda choice: choice["analyzer"])
def test_accuracy_is_scikit_learns_own(tmp_path, choice):
    theirs = make_pipeline(vectorizer(choice), LogisticRegression(C=choice["C"], max_iter=1000, random_state=0))
    theirs.fit(TEXTS, LABELS)
    fit_linear(TEXTS, LABELS, choice, seed=0).save(tmp_path)
    assert not list(tmp_path.rglob("*.pkl")) + list(tmp_path.rglob("*.joblib"))
    ours = load(tmp_path)
    answers = [answer.text for answer in ours.answer(ASKED)]
    assert accuracy_score(WANTED, answers) == theirs.score(ASKED, WANTED)
    assert np.array_equal(ours.probabilities(ASKED), theirs.predict_proba(ASKED))
    assert 0.6 < accuracy_score(WANTED, answers) < 1


def test_several_labels_are_scikit_learns_one_versus_rest(tmp_path):
    targets = [
        json.dumps(sorted({label, "long"} if len(text) > 40 else {label}))
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    choice = vectorizer_choices()[0]
    fit_linear(TEXTS, targets, choice, seed=0, several=True).save(tmp_path)
    binarizer = MultiLabelBinarizer().fit([json.loads(target) for target in targets])
    inner = OneVsRestClassifier(LogisticRegression(C=choice["C"], max_iter=1000, random_state=0))
    theirs = make_pipeline(vectorizer(choice), inner)
    theirs.fit(TEXTS, binarizer.transform([json.loads(target) for target in targets]))
    expected = [sorted(labels) for labels in binarizer.inverse_transform(theirs.predict(ASKED))]
    assert [json.loads(answer.text) for answer in load(tmp_path).answer(ASKED)] == expected


def test_tags_and_spans_are_inverse():
    fields = {"who": "spans", "where": "span", "mood": "enum"}
    target = {"who": ["花子", "太郎"], "where": "東京", "mood": "good"}
    text = "太郎と花子は東京へ行った。"
    tags = tag(text, target, fields)
    assert tags[:3] == ["B-who", "I-who", "O"]
    found = spans(text, tags, fields)
    assert (found["who"], found["where"]) == (sorted(target["who"]), "東京")


def test_the_tagger_learns_who_is_named_and_is_the_same_when_loaded(tmp_path):
    schema = {"type": "object", "properties": {"who": {"type": "array", "items": {"type": "string"}}}}
    task = Task(data="a", kind="extraction", schema=schema)
    names = ["太郎", "花子", "次郎", "和子"]
    train = [
        Example(
            i,
            f"昨日{names[i % 4]}さんが{'東京大阪'[2 * (i % 2) :][:2]}へ行った。",
            json.dumps({"who": [names[i % 4]]}, ensure_ascii=False),
        )
        for i in range(60)
    ]
    tagger = Tagger.fit(task, train, {"C": 10.0, "window": 2})
    tagger.save(tmp_path)
    # A name that was never seen, in the place of one.
    answers = load(tmp_path).answer(["昨日良子さんが東京へ行った。", "東京へ行った。"])
    assert [json.loads(answer.text)["who"] for answer in answers] == [["良子"], []]
    assert answers == tagger.answer(["昨日良子さんが東京へ行った。", "東京へ行った。"])


def test_the_nearest_text_answers(tmp_path):
    nearest = Nearest.fit(TEXTS, LABELS, {"analyzer": "word", "ngram_range": [1, 1]})
    nearest.save(tmp_path)
    assert [a.text for a in load(tmp_path).answer(TEXTS[:20])] == LABELS[:20]
