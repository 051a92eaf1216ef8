"""Learning curves: which rungs have them, that a point is a training on so many labels, and where they lead."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from inazuma.evaluate.audit.readers import read_study
from inazuma.rightsize import ladder
from inazuma.rightsize.curves import trainings
from inazuma.rightsize.splits import make_splits
from inazuma.rightsize.table import read_examples
from inazuma.rightsize.task import Task, Transformer
from inazuma.runs import verify
from tests.rightsize.planted import noisy, write

TINY = Transformer(hidden_size=32, layers=1, vocab_size=300, context=64, tokens=2000, batch_tokens=512)


def test_every_rung_that_learns_has_a_curve(tmp_path):
    rungs = ("majority", "tfidf", "scratch", "cascade")
    data = write(tmp_path / "a.csv", noisy(400))
    task = Task(data=data, rungs=rungs, transformer=TINY, trials=1, curve=(10, 32, 100, 5000))
    out = tmp_path / "run"
    result = ladder.rightsize(task, out, command=["inazuma", "rightsize"], say=lambda line: None)
    rungs = {rung["name"]: rung for rung in result["rungs"]}
    curves = {name: rung["learning_curve"] for name, rung in rungs.items() if "learning_curve" in rung}
    examples, _ = read_examples(task)
    splits = make_splits(task, examples)
    all_labels = len(splits["train"])
    assert {name: [count for count, _ in points] for name, points in curves.items()} == {
        "majority": [10, 32, 100, all_labels],
        "tfidf": [10, 32, 100, all_labels],
        "scratch": [32, 100, all_labels],
    }
    best = max(rung["quality"]["value"] for rung in rungs.values())
    for name, points in curves.items():
        assert points[-1][1] == rungs[name]["quality"]["value"]
        parity = rungs[name]["labels_to_parity"]
        if points[-1][1] >= best - task.margin:
            enough = [count for count, quality in points if quality >= best - task.margin]
            assert parity == {"labels": enough[0], "how": "measured"}
        else:
            assert parity["how"] != "measured" and (parity["labels"] == 0 or parity["labels"] > all_labels)
        assert rungs[name]["curve_seconds"] > 0
    # By scikit-learn itself, on examples at even steps.
    some = [splits["train"][i] for i in np.linspace(0, all_labels - 1, 100).round().astype(int)]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(
        vectorizer.fit_transform([x.text for x in some]), [x.target for x in some]
    )
    answers = model.predict(vectorizer.transform([x.text for x in splits["test"]]))
    assert dict(map(tuple, curves["tfidf"]))[100] == np.mean(answers == [x.target for x in splits["test"]])
    report = (out / "report.md").read_text()
    section = report.split("## Learning curves")[1].split("##")[0]
    assert "| scratch |" in section and f"| {rungs['tfidf']['labels_to_parity']['labels']} |" in section
    assert f"The curves took {sum(rungs[name]['curve_seconds'] for name in curves):.1f} s" in section
    assert not [path for path in out.iterdir() if path.name.startswith((".", "tokenizer"))], "scratch files are left"
    # Every rung is a run to the audit, also those that are made of others and answer as a model does.
    for name in rungs:
        assert [log.path.name for log in read_study(out / "rungs" / name).logs] == [name]
    assert {log.path.name for log in read_study(out).logs} == set(rungs) == {"majority", "tfidf", "scratch", "cascade"}
    # The figures stand on records, and a changed one is noticed.
    assert all(check.ok for check in verify(out))
    record = out / "rungs" / "tfidf" / "curve.jsonl"
    record.write_text(record.read_text().replace("0.0", "1.0", 1))
    failed = {check.name for check in verify(out) if not check.ok}
    assert {"rungs.1.learning_curve", "rungs/tfidf/curve.jsonl"} <= failed


def test_a_costly_rung_is_trained_no_oftener_than_its_tuning_was():
    assert trainings("tfidf", 1) is None, "seconds each"
    assert [trainings("scratch", tuned) for tuned in (1, 3, 5)] == [2, 3, 5]
    assert trainings("lora", 3) == trainings("pretrained", 3) == 2
