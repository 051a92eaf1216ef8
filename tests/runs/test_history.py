"""What a folder of runs cannot hide: deleted, replaced, edited and unended runs, and how many there were."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from inazuma import cli
from inazuma.errors import UserError
from inazuma.runs import Run
from inazuma.runs.history import history, siblings


def make(folder: Path, name: str, seed: int = 0, *, end: bool = True, **config) -> Run:
    settings = {"lr": 0.1, "seed": seed} | config
    run = Run.create(
        folder / name, command=["inazuma", "train", name], config=settings, seeds={"seed": seed}, force=True
    )
    if end:
        run.finish("finished")
    return run


def states(folder: Path) -> dict[str, str]:
    return {run.run: run.state for run in history(folder).runs}


def cut(folder: Path, lines: int) -> None:
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-lines]))


def test_all_runs_are_listed_and_runs_of_the_same_work_counted(tmp_path, capsys):
    for seed in range(3):
        make(tmp_path, f"s{seed}", seed)
    make(tmp_path, "other", lr=0.2)
    found = history(tmp_path)
    assert found.ok and states(tmp_path) == dict.fromkeys(("s0", "s1", "s2", "other"), "finished")
    others = {run.run: run.siblings for run in found.runs}
    assert others == {"s0": ("s1", "s2"), "s1": ("s0", "s2"), "s2": ("s0", "s1"), "other": ()}
    last = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)[-1]
    assert found.head == hashlib.sha256(last).hexdigest()
    assert cli.main(["verify", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "V14: a figure of the best of them is the best of up to 3 runs" in printed and found.head in printed


def test_a_deleted_run_shows_and_still_counts(tmp_path, capsys):
    kept = make(tmp_path, "good", 0)
    shutil.rmtree(make(tmp_path, "bad", 1).path)
    assert states(tmp_path) == {"good": "finished", "bad": "deleted"}
    assert siblings(kept.path, kept.manifest["id"]) == ("bad",)
    assert cli.main(["verify", str(tmp_path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["state"], run["seeds"], run["ok"]) for run in printed["runs"]] == [
        ("good", "finished", {"seed": 0}, True),
        ("bad", "deleted", {"seed": 1}, False),
    ]


def test_a_replaced_an_unended_and_a_failed_run_show(tmp_path):
    make(tmp_path, "a", 0)
    make(tmp_path, "a", 1)
    make(tmp_path, "killed", 2, end=False)
    make(tmp_path, "crashed", 3, end=False).finish("failed", error="x")
    runs = [(run.run, run.seeds["seed"], run.state, len(run.siblings)) for run in history(tmp_path).runs]
    assert runs == [
        ("a", 0, "replaced", 3),
        ("a", 1, "finished", 3),
        ("killed", 2, "never ended", 3),
        ("crashed", 3, "failed", 3),
    ]


def test_an_edited_manifest_a_swapped_one_and_a_strange_run_show(tmp_path):
    for name in "abc":
        make(tmp_path, name)
    for name, old, new in [("a", '"lr": 0.1', '"lr": 0.3'), ("b", '"id": "', '"id": "0')]:
        path = tmp_path / name / "manifest.json"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / "elsewhere", "d").path.rename(tmp_path / "d")
    found = history(tmp_path)
    assert found.problem is None  # what d followed was a line of another ledger
    assert states(tmp_path) == {"a": "edited", "b": "unknown", "c": "finished", "d": "unknown"}
    assert [run.state for run in found.runs if run.run == "b"] == ["edited", "unknown"]


def test_a_broken_chain_shows(tmp_path, capsys):
    make(tmp_path, "a")
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"started"', '"resumed"'))
    assert "the chain breaks" in history(tmp_path).problem
    assert cli.main(["verify", str(tmp_path)]) == 1
    assert "the chain breaks" in capsys.readouterr().out


def test_the_last_lines_cannot_be_cut_off(tmp_path):
    """The last and worst run is deleted, and its lines with it: the head tells."""
    make(tmp_path, "good", 0)
    shutil.rmtree(make(tmp_path, "bad", 1).path)
    cut(tmp_path, 2)
    assert "its last lines are missing: ledger.head" in history(tmp_path).problem


def test_nor_with_the_head_where_a_run_ended_later(tmp_path):
    """A run that ended after the deleted one followed its lines, and says so in its manifest."""
    run = make(tmp_path, "good", 0, end=False)
    shutil.rmtree(make(tmp_path, "bad", 1).path)
    run.finish("finished")
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[3])
    assert entry["run"] == "good" and entry["event"] == "finished"
    entry["previous"] = hashlib.sha256(lines[0]).hexdigest()
    forged = lines[0] + json.dumps(entry).encode() + b"\n"
    (tmp_path / "ledger.jsonl").write_bytes(forged)
    (tmp_path / "ledger.head").write_text(hashlib.sha256(forged.splitlines(keepends=True)[1]).hexdigest())
    assert "its last lines are missing: good followed a line" in history(tmp_path).problem
    with pytest.raises(UserError, match="its last lines are missing"):
        siblings(run.path, run.manifest["id"])


def test_a_kill_between_a_line_and_its_head_is_no_forgery(tmp_path):
    make(tmp_path, "a")
    before = (tmp_path / "ledger.head").read_bytes()
    make(tmp_path, "b")
    (tmp_path / "ledger.head").write_bytes(before)
    assert history(tmp_path).ok


def test_datasets_beside_runs_are_no_runs(tmp_path):
    make(tmp_path, "a")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text('{"format": "inazuma dataset"}')
    assert states(tmp_path) == {"a": "finished"}


def test_neither_a_run_nor_a_folder_of_runs(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder .* nor a folder of runs"):
        history(tmp_path)
