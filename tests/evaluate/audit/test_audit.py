"""The verb: exit codes, JSON, waivers; the statistics and puzzles against independent sources; the committed record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from statsmodels.stats.contingency_tables import mcnemar

from benchmarks.audit import RESULT, TABLE, summary, with_table
from benchmarks.audit_logs import write
from benchmarks.audit_simulated import log_of, respond, sums
from inazuma import cli
from inazuma.evaluate.audit import RULES, measure
from inazuma.evaluate.audit.puzzles import crossing, measurable, solvable
from inazuma.evaluate.audit.rules.v16_judge import family
from inazuma.evaluate.audit.text import final_answer, last_number, same_answer
from inazuma.evaluate.audit.waivers import Waiver
from inazuma.evaluate.tasks.river_crossing import solve


def test_there_are_25_rules_each_with_its_case_and_fix() -> None:
    assert [rule.NUMBER for rule in RULES] == [f"V{number:02}" for number in range(1, 26)]
    for rule in RULES:
        assert rule.TITLE and rule.SOURCE and rule.FIX and rule.__doc__
        assert rule.__name__.rpartition(".")[2].startswith(rule.NUMBER.lower())


# ------------------------------------------------------------------------------------------------------------ the verb


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A run that is sound, and one in which a connection that broke counts as wrong."""
    random = np.random.default_rng(1)
    samples = respond(random, sums(random, 80), 1.0)
    write(log_of(samples, "inazuma", model="m", name="sound"), tmp_path / "sound", "inazuma")
    at = next(at for at, sample in enumerate(samples) if sample.score == 0)
    samples[at] = samples[at].__class__(**{**vars(samples[at]), "error": "connection reset"})
    write(log_of(samples, "inazuma", model="m", name="broken"), tmp_path / "broken", "inazuma")
    (tmp_path / "at").write_text(samples[at].item)
    return tmp_path


def test_exit_codes_and_json(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(logs / "sound"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["findings"] == [] and set(record) >= {"findings", "read", "waived", "waivers", "undecided", "rules"}
    assert record["read"][0]["tasks"] == {"sums": 80} and record["read"][0]["format"] == "inazuma"
    assert record["rules"]["V08"] == "undecided" and record["rules"]["V21"] == "clean" and len(record["rules"]) == 25
    assert cli.main(["audit", str(logs / "broken"), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["rule"] == "V21" and finding["item"] == "sums" and "connection reset" in finding["evidence"]
    assert finding["items"] == [(logs / "at").read_text()] and "infrastructure" in finding["fix"]
    assert cli.main(["audit", str(logs / "nowhere")]) == 2
    assert capsys.readouterr().err == f"inazuma: error: {logs / 'nowhere'}: no such file or folder\n"


def test_waivers_are_printed_used_or_not(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = (logs / "at").read_text()
    waivers = [
        {"rule": "V21", "items": [item], "reason": "the cable was out"},
        {"rule": "V01", "task": "other", "reason": "not needed"},
    ]
    (logs / "broken/waivers.yaml").write_text(yaml.safe_dump(waivers))
    assert cli.main(["audit", str(logs / "broken")]) == 0
    shown = capsys.readouterr().out
    assert "waived: the cable was out" in shown and "covers nothing: not needed" in shown and "0 findings" in shown
    assert cli.main(["audit", str(logs / "broken"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["rules"]["V21"] == "waived" and [waiver["used"] for waiver in record["waivers"]] == [True, False]
    # Another item, another task: not what was waived.
    for change in ({"items": ["no such"]}, {"items": [], "task": "other"}):
        (logs / "w.yaml").write_text(yaml.safe_dump([waivers[0] | change]))
        assert cli.main(["audit", str(logs / "broken"), "--waivers", str(logs / "w.yaml")]) == 1
    capsys.readouterr()
    for text, message in (
        ("- {rule: V99, reason: x}", "no rule 'V99'"),
        ("- {rule: V01, reason: ' '}", "a waiver needs a reason"),
        ("- {rule: V01}", "reason"),
        ("rule: V01", "expected a list"),
    ):
        (logs / "w.yaml").write_text(text)
        assert cli.main(["audit", str(logs / "broken"), "--waivers", str(logs / "w.yaml")]) == 2
        assert message in capsys.readouterr().err


def test_a_waiver_covers_a_finding_only_with_all_its_items() -> None:
    waiver = Waiver("V05", "checked", items=["1", "2"])
    assert waiver.covers("V05", "log: sums", ("1",)) and waiver.covers("V05", "sums", ("2", "1"))
    assert not waiver.covers("V05", "sums", ("1", "3")) and not waiver.covers("V05", "sums", ())
    assert not waiver.covers("V06", "sums", ("1",))
    assert Waiver("V05", "x", task="sums").covers("V05", "log: sums", ("9",))


def test_study_yaml_is_checked(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "sound/study.yaml").write_text("comparisons: [{a: x, b: y, task: sums, difference: 0.1, claim: best}]")
    assert cli.main(["audit", str(logs / "sound")]) == 2
    assert "study.yaml: comparisons.0.claim" in capsys.readouterr().err
    (logs / "sound/study.yaml").write_text("texts: {pretraining: [gone.jsonl]}")
    assert cli.main(["audit", str(logs / "sound")]) == 2
    assert "gone.jsonl: no such file" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- statistics and puzzles


def test_the_paired_test_is_statsmodels() -> None:
    random = np.random.default_rng(3)
    x, y = (random.integers(0, 2, 60).astype(float) for _ in range(2))
    won, lost = int((x > y).sum()), int((x < y).sum())
    assert measure.paired_p(x, y) == pytest.approx(float(mcnemar([[0, won], [lost, 0]], exact=True).pvalue))


@pytest.mark.parametrize(("pairs", "boat"), [(2, 2), (3, 2), (4, 2), (2, 3), (4, 3), (5, 3), (6, 3)])
def test_counting_heads_decides_the_puzzle_of_pairs(pairs: int, boat: int) -> None:
    """V04 counts heads, so that it can decide a hundred pairs; the task's solver takes everyone by name."""
    assert crossing(pairs, boat) == (solve(pairs, boat) is not None)


def test_published_solvability() -> None:
    # Boat for 2: up to 3 pairs; for 3: up to 5 (from 6 on none); for 4: any number. arXiv 2507.01231.
    assert [n for n in range(2, 12) if crossing(n, 2)] == [2, 3]
    assert [n for n in range(2, 12) if crossing(n, 3)] == [2, 3, 4, 5]
    assert all(crossing(n, 4) for n in range(2, 12))
    assert measurable(3, 5, 4) and not measurable(4, 6, 3) and not measurable(3, 5, 9)
    assert solvable("You have jugs of 4 and 6 litres. Measure 3.") == ("measuring 3 with jugs of 4 and 6", False)
    assert solvable("What is 3 + 4?") is None


def test_reading_answers() -> None:
    assert final_answer("Hence the answer is 42. Or so") == "42"
    assert final_answer("so \\boxed{3.5} it is") == "3.5" and final_answer("text\n#### 1,200") == "1,200"
    assert final_answer("no such words") is None and last_number("from 3 to 1,200.") == "1,200"
    assert same_answer("1,200.0", "1200") and same_answer("Paris.", "paris") and not same_answer("-3", "3")
    assert family("openai/gpt-4o") == family("azure/gpt-3.5-turbo") == "gpt" != family("anthropic/claude-3")


# ---------------------------------------------------------------------------------------------------------- the record


def test_the_table_in_the_documentation_is_the_records() -> None:
    record = json.loads(RESULT.read_text())
    text = TABLE.read_text(encoding="utf-8")
    assert with_table(text, record) == text and "| V25 |" in text
    assert summary(record["planted"], record["clean"]) == record["summary"]
    assert record["summary"]["planted"] >= 200 and record["summary"]["clean"] >= 200
    assert all(row["planted"] >= 8 for row in record["summary"]["rules"].values())
    assert len(record["summary"]["rules"]) == 25
