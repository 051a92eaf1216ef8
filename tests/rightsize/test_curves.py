"""Learning curves: which rungs have them, and that a point is a training on so many labels."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from inazuma.files import read_json
from inazuma.rightsize import ladder
from inazuma.rightsize.splits import make_splits
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task, Transformer
from tests.rightsize.planted import noisy, write

TINY = Transformer(hidden_size=32, layers=1, vocab_size=300, context=64, tokens=2000, batch_tokens=512)


def test_every_rung_that_learns_has_a_curve(tmp_path):
    rungs = ("majority", "tfidf", "scratch", "cascade")
    data = write(tmp_path / "a.csv", noisy(400))
    task = Task(data=data, rungs=rungs, transformer=TINY, trials=1, curve=(10, 32, 100, 5000))
    out = tmp_path / "run"
    result = ladder.rightsize(task, out, command=["inazuma", "rightsize"], say=lambda line: None)
    curves = read_json(out / "curves.json")
    examples, _ = read_examples(task)
    splits = make_splits(task, examples)
    all_labels = len(splits["train"])
    assert {name: [count for count, _ in points] for name, points in curves.items()} == {
        "majority": [10, 32, 100, all_labels],
        "tfidf": [10, 32, 100, all_labels],
        "scratch": [32, 100, all_labels],
    }
    for rung in result["rungs"]:
        if rung["name"] in curves:
            assert curves[rung["name"]][-1][1] == rung["quality"]["value"]
    # By scikit-learn itself, on examples at even steps.
    some = [splits["train"][i] for i in np.linspace(0, all_labels - 1, 100).round().astype(int)]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(
        vectorizer.fit_transform([x.text for x in some]), [x.target for x in some]
    )
    answers = model.predict(vectorizer.transform([x.text for x in splits["test"]]))
    assert dict(map(tuple, curves["tfidf"]))[100] == np.mean(answers == [x.target for x in splits["test"]])
    report = (out / "report.md").read_text()
    assert "| scratch |" in report.split("## Learning curves")[1].split("##")[0]
    assert not [path for path in out.iterdir() if path.name.startswith((".", "tokenizer"))], "scratch files are left"
