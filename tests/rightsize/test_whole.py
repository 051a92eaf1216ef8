"""The whole climb on planted data: the verdict, what it leaves behind, and that a kill loses nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from inazuma.cli import main
from inazuma.errors import UserError
from inazuma.files import read_json, sha256, write_json
from inazuma.rightsize import ladder, load
from inazuma.rightsize.task import Limits, Task, Transformer
from inazuma.runs import verify
from tests.rightsize.planted import keyword, noisy, order, write

TINY = Transformer(hidden_size=32, layers=1, vocab_size=300, context=64, tokens=4000, batch_tokens=512)


def climb(task: Task, out: Path, **options):
    return ladder.rightsize(task, out, command=["inazuma", "rightsize"], say=lambda line: None, **options)


def test_a_keyword_needs_no_transformer(tmp_path, capsys):
    path = write(tmp_path / "mail.csv", keyword(800))
    assert main(["rightsize", str(path), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("The smallest sufficient rung is tfidf")
    assert "scratch: skipped, not needed" in said.err and "prompted: {folder: ...}" in said.err
    result = read_json(tmp_path / "run" / "result.json")
    assert result["verdict"]["kind"] == "smallest-sufficient" and result["verdict"]["rung"] == "tfidf"
    assert result["verdict"]["more_labels"] == 0
    for rung in result["rungs"]:
        assert rung["quality"]["low"] <= rung["quality"]["value"] <= rung["quality"]["high"]
        latency = rung["latency_ms"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
        assert rung["memory_mb"] > 20 and rung["cost"] > 0
    assert all(check.ok for check in verify(tmp_path / "run"))
    texts = [row["text"] for row in keyword(50, seed=9)]
    answers = [answer.text for answer in load(tmp_path / "run" / "model").answer(texts)]
    assert answers == [row["label"] for row in keyword(50, seed=9)]
    counts = Counter(row["label"] for row in keyword(800))
    for name in ("report.html", "report.md"):
        report = (tmp_path / "run" / name).read_text()
        assert "tfidf" in report and all(f"{label} {count}" in report for label, count in counts.items())


def test_a_changed_sample_is_noticed(tmp_path):
    task = Task(data=write(tmp_path / "a.csv", noisy(200)), rungs=("majority", "tfidf"))
    climb(task, tmp_path / "run")
    samples = tmp_path / "run" / "rungs" / "tfidf" / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"score": 0.0', '"score": 1.0'))
    failed = {check.name for check in verify(tmp_path / "run") if not check.ok}
    assert "rungs.1.quality.value" in failed and "rungs/tfidf/samples.jsonl" in failed


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", noisy(200))
    task = Task(data=path, rungs=("majority", "tfidf", "scratch", "cascade"), transformer=TINY, trials=2)
    climb(task, tmp_path / "whole")
    real = ladder.climb

    def killed(name, *rest):
        if name == "scratch":
            raise KeyboardInterrupt
        real(name, *rest)

    monkeypatch.setattr(ladder, "climb", killed)
    with pytest.raises(KeyboardInterrupt):
        climb(task, tmp_path / "again")
    assert read_json(tmp_path / "again" / "manifest.json")["status"] == "interrupted"
    before = (tmp_path / "again" / "rungs" / "tfidf" / "samples.jsonl").stat().st_mtime_ns
    monkeypatch.setattr(ladder, "climb", real)
    with pytest.raises(UserError, match="began with another task \\(margin\\)"):
        climb(Task(**{**vars(task), "margin": 0.1}), tmp_path / "again", resume=True)
    climb(task, tmp_path / "again", resume=True)
    assert (tmp_path / "again" / "rungs" / "tfidf" / "samples.jsonl").stat().st_mtime_ns == before
    # Milliseconds aside both runs are the same: answers, weights, verdict. A cascade is chosen by milliseconds too.
    for rung, files in (
        ("tfidf", ("samples.jsonl", "model/linear.safetensors", "model/vocabulary.json")),
        ("scratch", ("samples.jsonl", "model/model.safetensors", "model/tokenizer.json")),
    ):
        for name in files:
            assert sha256(tmp_path / "whole" / "rungs" / rung / name) == sha256(
                tmp_path / "again" / "rungs" / rung / name
            )
    first, second = (read_json(tmp_path / name / "result.json") for name in ("whole", "again"))
    assert [rung["quality"] for rung in first["rungs"][:3]] == [rung["quality"] for rung in second["rungs"][:3]]
    assert first["rungs"][-1]["name"] == "cascade"
    assert all(check.ok for check in verify(tmp_path / "again"))
    assert load(tmp_path / "again" / "rungs" / "cascade" / "model").answer(["thanks"])[0].text in (
        "praise",
        "complaint",
    )


@pytest.mark.parametrize("energy", ["counted", "estimated"])
def test_energy_that_is_only_estimated_ranks_nothing(tmp_path, monkeypatch, energy):
    """Of two rungs that answer alike the second one draws far less: it is alone on the front if that was counted."""
    path = write(tmp_path / "a.csv", keyword(200))
    estimated = ladder.climb

    def drawing(name, task, splits, plan, out):
        estimated(name, task, splits, plan, out)
        facts = read_json(out / "rungs" / name / "facts.json")
        facts |= {"joules": 3.6e9 if name == "majority" else 1.0, "energy": energy}
        write_json(out / "rungs" / name / "facts.json", facts)

    monkeypatch.setattr(ladder, "climb", drawing)
    result = climb(Task(data=path, rungs=("majority", "tfidf"), trials=1, curve=()), tmp_path / "run")
    majority, tfidf = result["rungs"]
    assert majority["cost"] > tfidf["cost"] and tfidf["on_front"] == 1.0
    assert majority["on_front"] == (0.0 if energy == "counted" else 1.0)
    assert all(check.ok for check in verify(tmp_path / "run"))


def test_a_limit_rules_a_rung_out(tmp_path):
    path = write(tmp_path / "a.csv", noisy(200))
    with pytest.raises(UserError, match="no rung keeps to the limits: majority needs"):
        climb(Task(data=path, rungs=("majority", "tfidf"), limits=Limits(memory_mb=1)), tmp_path / "run")


SPANS = {"type": "array", "items": {"type": "string"}}
WHO = {"type": "object", "properties": {"who": SPANS, "good": {"enum": ["yes", "no"]}}}
NAMES = ("Taro", "Hanako", "Jiro", "Kazuko")


@pytest.mark.parametrize(
    ("kind", "answer", "more"),
    [
        ("multi-label", lambda row, who: [row["label"], *(["named"] if who else [])], {}),
        (
            "extraction",
            lambda row, who: {"who": [who] if who else [], "good": "yes" if row["label"] == "praise" else "no"},
            {"schema": WHO},
        ),
        ("generation", lambda row, who: f"dear {who or 'all'}", {"scorer": "f1"}),
    ],
)
def test_the_other_kinds_of_answers(tmp_path, kind, answer, more):
    with open(tmp_path / "a.jsonl", "w") as handle:
        for i, row in enumerate(keyword(160)):
            who = NAMES[i % 4] if i % 3 else ""
            text = f"{who} wrote: {row['text']}" if who else row["text"]
            handle.write(json.dumps({"text": text, "label": answer(row, who)}) + "\n")
    task = Task(data=tmp_path / "a.jsonl", kind=kind, rungs=("majority", "tfidf"), trials=1, **more)
    result = climb(task, tmp_path / "run")
    floor, small = (rung["quality"]["value"] for rung in result["rungs"])
    assert small > floor + 0.1 and small > 0.75
    assert result["verdict"]["rung"] == "tfidf"
    assert all(check.ok for check in verify(tmp_path / "run"))


@pytest.mark.slow
def test_word_order_is_not_answered_with_a_bag_of_words(tmp_path):
    shape = Transformer(
        hidden_size=64, layers=2, vocab_size=400, context=48, tokens=400_000, epochs=30, batch_tokens=1024
    )
    path = write(tmp_path / "a.csv", order(1600))
    task = Task(data=path, rungs=("majority", "tfidf", "scratch"), transformer=shape, margin=0.05, trials=1)
    result = climb(task, tmp_path / "run")
    rungs = {rung["name"]: rung["quality"]["value"] for rung in result["rungs"]}
    assert result["verdict"]["rung"] == "scratch" and result["verdict"]["kind"] == "smallest-sufficient"
    # Neighbouring words give some of it away.
    assert rungs["scratch"] > 0.95 > 0.9 > rungs["tfidf"]
    # What `inazuma serve` gets is the model that was judged.
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["vocab_size"] <= 400


def test_a_single_group_does_not_end_the_climb(tmp_path):
    """All items of one document: nothing tells how another would do, however good the answers."""
    line = {"task": "test", "outcome": "wrong", "score": 0.999, "cluster": "one"}
    samples = tmp_path / "rungs" / "tfidf" / "samples.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text(f"{json.dumps(line)}\n" * 60)
    assert ladder._enough(Task(data=Path("-")), tmp_path, ["tfidf"]) is None
