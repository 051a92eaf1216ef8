"""`inazuma audit` on runs of the ladder: clean ones pass, planted flaws are found, edited ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inazuma.cli import main
from inazuma.files import read_json
from inazuma.rightsize import ladder
from inazuma.rightsize.splits import Splits, make_splits
from inazuma.rightsize.task import Prompted, Task
from tests.rightsize.planted import noisy, write


def climb(task: Task, out: Path) -> list[str]:
    said: list[str] = []
    ladder.rightsize(task, out, command=["inazuma", "rightsize"], say=said.append)
    return said


def test_a_clean_run_is_read_rung_by_rung_and_has_no_finding(tmp_path, capsys, monkeypatch):
    data = write(tmp_path / "a.csv", noisy(400))
    said = climb(Task(data=data, rungs=("majority", "tfidf"), curve=()), tmp_path / "run")
    assert not [line for line in said if line.startswith("audit:")]
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(log["path"]).name for log in found["read"]] == ["majority", "tfidf"]
    for rule in ("V05", "V07", "V10", "V21", "V22"):
        assert found["rules"][rule] == "clean"
    assert [one["rule"] for one in found["waived"]] == ["V24"], "the floor, with its reason"
    assert "## Audit" in (tmp_path / "run" / "report.md").read_text()
    # One rung alone is a run, too, by its folder or its samples.
    samples = tmp_path / "run" / "rungs" / "tfidf" / "samples.jsonl"
    monkeypatch.chdir(samples.parent)
    for path in (samples, samples.parent, "."):
        capsys.readouterr()
        assert main(["audit", str(path), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["read"]) == 1
    samples.write_text(samples.read_text().replace('"score": 0.0', '"score": 1.0'))
    assert main(["audit", str(tmp_path / "run")]) == 2


@pytest.mark.parametrize("into", ["train", "calibration"])
def test_a_leak_between_splits_is_found(tmp_path, monkeypatch, capsys, into):
    def leaking(task, examples):
        splits = make_splits(task, examples)
        return Splits({**splits.parts, into: [*splits[into], *splits["test"][:9]]}, splits.findings)

    monkeypatch.setattr(ladder, "make_splits", leaking)
    data = write(tmp_path / "a.csv", noisy(400))
    said = climb(Task(data=data, rungs=("majority", "tfidf"), curve=()), tmp_path / "run")
    [line] = [line for line in said if line.startswith("audit:")]
    assert line.startswith("audit: V07 Leakage between splits: splits: 9 of ")
    assert read_json(tmp_path / "run" / "audit.json")["findings"][0]["rule"] == "V07"
    assert "V07 Leakage between splits" in (tmp_path / "run" / "report.md").read_text()
    assert main(["audit", str(tmp_path / "run")]) == 1


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_answers_that_were_cut_off_are_found_and_wrong_ones_that_ended_are_not(tmp_path, capsys, reason):
    rows = noisy(400)
    data = write(tmp_path / "a.csv", rows)
    outputs = tmp_path / "outputs.jsonl"
    with open(outputs, "w") as handle:
        for i, row in enumerate(rows):
            wrong = "praise" if row["label"] == "complaint" else "complaint"
            answer = {"text": row["text"], "output": row["label"] if i % 4 else wrong, "milliseconds": 5.0}
            answer |= {"input_tokens": 20, "output_tokens": 2, "stop_reason": "stop" if i % 4 else reason}
            handle.write(json.dumps(answer) + "\n")
    task = Task(data=data, rungs=("majority", "prompted"), prompted=Prompted(outputs=outputs), curve=())
    said = [line for line in climb(task, tmp_path / "run") if line.startswith("audit:")]
    capsys.readouterr()
    code = main(["audit", str(tmp_path / "run"), "--json"])
    found = json.loads(capsys.readouterr().out)
    if reason == "stop":
        assert (said, code, found["rules"]["V01"], found["findings"]) == ([], 0, "clean", [])
    else:
        [line] = said
        assert line.startswith("audit: V01") and "prompted: test" in line and code == 1
        assert [one["rule"] for one in found["findings"]] == ["V01"]
