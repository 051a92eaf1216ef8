"""An evaluation from the first item to the report: typed outcomes, figures that can be recomputed, the same bits."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import inazuma
from inazuma import cli
from inazuma.errors import RunError, UserError
from inazuma.evaluate.answering import Reply
from inazuma.evaluate.evaluate import Settings, evaluate
from inazuma.evaluate.local import LocalModel
from inazuma.evaluate.outcome import item_hash, read_samples
from inazuma.evaluate.tasks import make_tasks
from inazuma.runs import verify
from inazuma.runs.intervals import wilson
from tests.evaluate.conftest import Scripted

FIELDS = [
    "task", "item", "id", "cluster", "outcome", "score", "prompt", "target", "answer", "extracted", "stop_reason",
    "prompt_tokens", "generated_tokens", "max_tokens", "prompt_tokens_dropped", "min_answer_tokens", "chance", "seed",
    "batch_size", "error",
]  # fmt: skip


def failed(run: Path) -> list[str]:
    return [check.name for check in verify(run) if not check.ok]


@pytest.fixture(scope="module")
def evaluated(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The command line, twice."""
    folder = tmp_path_factory.mktemp("runs")
    options = ["--tasks", "multi-key-recall,counting,hanoi,bits-per-byte", "--lengths", "512", "--items", "2"]
    options += ["--text", str(texts), "--max-tokens", "12"]
    for name in ("first", "second"):
        assert cli.main(["eval", str(checkpoint), "--out", str(folder / name), *options]) == 0
    return [folder / "first", folder / "second"]


def test_a_run_verifies_and_evaluated_twice_gives_the_same_bits(evaluated: list[Path]) -> None:
    first, second = evaluated
    assert failed(first) == []
    for name in ("samples.jsonl", "documents/bits-per-byte.jsonl", "result.json", "report.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_every_sample_says_all_of_it(evaluated: list[Path]) -> None:
    lines = [json.loads(line) for line in (evaluated[0] / "samples.jsonl").read_text().splitlines()]
    assert all(list(line) == FIELDS for line in lines)
    asked = [line for line in lines if line["outcome"] != "invalid_item"]
    assert len({line["item"] for line in lines}) == len(lines)
    for line in lines:
        assert line["item"] == item_hash(line["task"], line["prompt"], line["target"])
        assert line["max_tokens"] <= 12 and line["batch_size"] == 1
    for line in asked:
        assert line["stop_reason"] in ("stop", "length") and line["prompt_tokens_dropped"] == 0
        assert 0 < line["generated_tokens"] <= line["max_tokens"] and line["min_answer_tokens"] <= line["max_tokens"]
        assert (line["outcome"] == "truncated") == (line["stop_reason"] == "length")
    reasons = {line["id"]: line["error"] for line in lines if line["outcome"] == "invalid_item"}
    assert "and the limit is 12" in reasons["5-AC"]  # 31 moves
    assert "exceed the model's 1024 positions" in reasons["10-AC"]
    assert "1-AC" not in reasons


def test_an_edited_sample_is_named(evaluated: list[Path]) -> None:
    path = evaluated[1] / "samples.jsonl"
    before = path.read_text()
    lines = [json.loads(line) for line in before.splitlines()]
    changed = next(line for line in lines if line["outcome"] in ("wrong", "truncated") and line["task"] == "hanoi")
    changed["score"], changed["outcome"] = 1.0, "correct"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    try:
        found = failed(evaluated[1])
    finally:
        path.write_text(before)
    assert {"samples.jsonl", "tasks.hanoi.as_scored", "tasks.hanoi.outcomes.correct"} <= set(found)


def test_bits_per_byte_against_one_pass_over_each_document(
    evaluated: list[Path], checkpoint: Path, texts: Path
) -> None:
    model = inazuma.load(checkpoint).requires_grad_(False)
    tokenizer = LocalModel(checkpoint).tokenizer
    records = [json.loads(line) for line in (evaluated[0] / "documents/bits-per-byte.jsonl").read_text().splitlines()]
    nats, size = 0.0, 0
    for number, record in enumerate(records):
        text = (texts / f"{number}.txt").read_text()
        ids = torch.tensor([[0, *tokenizer.encode(text).ids]])
        assert record["bytes"] == len(text.encode()) and record["tokens"] == ids.shape[1] - 1
        if number:
            expected = float(cross_entropy(model(ids[:, :-1])[0].double(), ids[0, 1:], reduction="sum"))
            assert record["nll"] == pytest.approx(expected, rel=1e-5)
        else:  # longer than the positions: two windows, the second with half a window before it
            assert ids.shape[1] > 1024
            first = cross_entropy(model(ids[:, :1023])[0].double(), ids[0, 1:1024], reduction="sum")
            rest = model(ids[:, 512:-1])[0].double()[511:]
            expected = float(first + cross_entropy(rest, ids[0, 1024:], reduction="sum"))
            assert ids.shape[1] <= 512 + 1024 and record["nll"] == pytest.approx(expected, rel=1e-5)
        nats, size = nats + record["nll"], size + record["bytes"]
    result = json.loads((evaluated[0] / "result.json").read_text())["bits_per_byte"]["bits-per-byte"]
    assert result["value"] == pytest.approx(nats / math.log(2) / size)
    assert result["interval"][0] < result["value"] < result["interval"][1]


def test_the_report_begins_with_what_failed(evaluated: list[Path]) -> None:
    page, text = (evaluated[0] / "report.html").read_text(), (evaluated[0] / "report.md").read_text()
    for report in (page, text):
        assert 0 < report.index("cut off at the limit") < report.index("Scores") < report.index("Outcomes")
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "not shown to be above chance" in text


# ------------------------------------------------------------------------------------------------------ typed outcomes

TASK = make_tasks(["counting"], lengths=[512], count=14)[0]
WITNESS = {item.prompt: item.witness for item in TASK.items(0)}
SETTINGS = Settings(tasks=("counting",), lengths=(512,), items=14)


def planted(prompt: str, limit: int) -> Reply:
    """Two of each: right, wrong, cut off, cut off though right, silent, refused, failed."""
    kind = list(WITNESS).index(prompt) // 2
    gold = WITNESS[prompt]
    return [
        Reply(gold, "stop", dropped=0),
        Reply(" 99", "stop", dropped=0),
        Reply(" let me think", "length", dropped=0),
        Reply(gold, "length", dropped=0),
        Reply(" well", "stop", dropped=0),
        Reply("I cannot help with that", "content_filter", refused=True),
        Reply(error="the line is dead"),
    ][kind]


def test_outcomes_and_scores(tmp_path: Path) -> None:
    model = Scripted(planted)
    with pytest.raises(RunError, match="2 of 14 items met infrastructure errors, most often: the line is dead"):
        evaluate(model, SETTINGS, tmp_path / "run")
    outcomes = Counter(sample.outcome for sample in read_samples(tmp_path / "run"))
    kinds = ("correct", "wrong", "no_answer", "refused", "infrastructure_error")
    assert outcomes == dict.fromkeys(kinds, 2) | {"truncated": 4}
    score = json.loads((tmp_path / "run/result.json").read_text())["tasks"]["counting-512"]
    assert score["n"] == 12 and score["clusters"] == 12
    assert score["as_scored"] == pytest.approx(4 / 12)
    assert score["completed"] == pytest.approx(2 / 8)
    assert (score["worst"], score["best"]) == pytest.approx((2 / 12, 6 / 12))
    assert score["interval"] == pytest.approx(wilson(4, 12))
    assert score["chance"] == 1 / 8
    assert score["outcomes"]["infrastructure_error"] == 2
    assert failed(tmp_path / "run") == []


def test_a_dropped_part_of_the_prompt_makes_the_item_invalid(tmp_path: Path) -> None:
    model = Scripted(lambda prompt, limit: Reply(WITNESS[prompt], "stop", dropped=int(prompt == next(iter(WITNESS)))))
    result = evaluate(model, SETTINGS, tmp_path / "run")
    score = result["tasks"]["counting-512"]
    assert (score["n"], score["outcomes"]["invalid_item"], score["as_scored"]) == (13, 1, 1.0)
    assert "saturated" not in (tmp_path / "run/report.md").read_text()  # 13 right ones do not show that


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_same_command_asks_only_for_what_is_missing(tmp_path: Path, at_once: int) -> None:
    def right(prompt: str, limit: int) -> Reply:
        return Reply(WITNESS[prompt], "stop", generated_tokens=1, dropped=0)

    evaluate(Scripted(right, at_once=at_once), SETTINGS, tmp_path / "whole")

    def breaks(prompt: str, limit: int) -> Reply:
        place = model.asked.index(prompt)  # however many were asked since
        if place >= 5:
            raise KeyboardInterrupt
        return Reply(error="busy") if place == 1 else right(prompt, limit)

    model = Scripted(breaks, at_once=at_once)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, SETTINGS, tmp_path / "run")
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "interrupted"
    with open(tmp_path / "run/samples.jsonl", "ab") as handle:
        handle.write(b'{"task": "counting-512", "it')  # what a killed process leaves
    again = Scripted(right, at_once=at_once)
    evaluate(again, SETTINGS, tmp_path / "run")
    assert 0 < 14 - len(again.asked) <= 5 and model.asked[1] in again.asked
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
    assert failed(tmp_path / "run") == []
    with pytest.raises(UserError, match="is finished; `inazuma verify"):
        evaluate(again, SETTINGS, tmp_path / "run")
    with pytest.raises(UserError, match="another model or other settings"):
        evaluate(Scripted(right, name="other"), SETTINGS, tmp_path / "run")


def test_what_cannot_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = Scripted(lambda prompt, limit: Reply(" 1", "stop", dropped=0), positions=100)
    settings = Settings(tasks=("counting", "river-crossing"), lengths=(512,), items=2)
    result = evaluate(model, settings, tmp_path / "run")
    samples = read_samples(tmp_path / "run")
    assert {s.outcome for s in samples if s.task == "counting-512"} == {"invalid_item"}
    assert "all states searched" in next(s.error for s in samples if s.id == "6-pairs-boat-3")
    assert "exceed the model's 100 positions" in samples[0].error
    assert result["tasks"]["counting-512"]["n"] == 0 and "as_scored" not in result["tasks"]["counting-512"]
    assert "no item came back" in (tmp_path / "run/report.md").read_text()
    assert not any("512" in prompt for prompt in model.asked)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(tasks=()), "no tasks"),
        (Settings(tasks=("chess",)), "unknown task 'chess'"),
        (Settings(tasks=("bits-per-byte",)), "name the held-out text with --text"),
        (Settings(tasks=("bits-per-byte",), text=("nowhere",)), "no such file or folder"),
        (Settings(tasks=("bits-per-byte",), text=(__file__,)), "need a checkpoint on this machine"),
        (Settings(tasks=("bits-per-byte",), text=(__file__, __file__)), "1 documents occur more than once"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: Settings, says: str) -> None:
    with pytest.raises(UserError, match=says):
        evaluate(Scripted(planted), settings, tmp_path / "run")


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    inazuma.load(checkpoint).save(tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        LocalModel(tmp_path / "model")
