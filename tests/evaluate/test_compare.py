"""Two evaluations: aligned item by item or refused, decided in pairs, a verdict for each task."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inazuma import cli
from inazuma.errors import RunError, UserError
from inazuma.evaluate.answering import Reply
from inazuma.evaluate.compare import compare_runs
from inazuma.evaluate.evaluate import Settings, evaluate
from inazuma.evaluate.statistics import compare
from inazuma.evaluate.tasks import make_tasks
from inazuma.runs import Run
from inazuma.runs.lines import encode_line
from tests.evaluate.conftest import Scripted

SETTINGS = Settings(tasks=("counting", "non-lexical-recall"), lengths=(512,), items=60)
ITEMS = [item for task in make_tasks(SETTINGS.tasks, lengths=(512,), count=60) for item in task.items(0)]
PLACE = {item.prompt: i % 60 for i, item in enumerate(ITEMS)}
WITNESS = {item.prompt: item.witness for item in ITEMS}


def run(path: Path, knows: Callable[[str, int], bool], settings: Settings = SETTINGS, **changed: Any) -> Path:
    """An evaluation of a model that is right where `knows` (prompt, number) says so."""

    def reply(prompt: str, limit: int) -> Reply:
        right = knows(prompt, PLACE.get(prompt, 0))
        return replace(Reply(WITNESS.get(prompt, " 1") if right else " none 99", "stop", dropped=0), **changed)

    evaluate(Scripted(reply, name=path.name), settings, path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "weak", lambda prompt, i: i % 3 == 0)
    run(folder / "strong", lambda prompt, i: i % 3 == 0 or ("ring a bell" in prompt and i % 3 == 1))
    return folder


def test_verdicts_of_two_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(runs / "weak"), str(runs / "strong"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counting, recall = found["comparisons"]
    assert (counting["task"], counting["verdict"]) == ("counting-512", "better")
    assert counting["difference"] == pytest.approx(20 / 60) and counting["test"] == "exact McNemar"
    assert counting["adjusted_p"] == pytest.approx(2 * counting["p_value"])  # of a family of two
    assert recall["difference"] == 0 and recall["verdict"].startswith("cannot tell: about ")
    assert recall["clusters"] < recall["n"] == 60 and recall["test"] == "sign flips"
    assert "One training seed a side" in found["notes"][0]
    [worse, _] = compare_runs([runs / "strong"], [runs / "weak"])
    assert worse.comparison.verdict == "worse"


def test_the_report(runs: Path, tmp_path: Path) -> None:
    command = ["compare", str(runs / "weak"), str(runs / "strong"), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    text, page = (tmp_path / "out/report.md").read_text(), (tmp_path / "out/report.html").read_text()
    assert text.index("One training seed") < text.index("better")
    assert "better" in page and "strong" in page
    assert cli.main(command) == 2
    assert cli.main([*command, "--force"]) == 0


def test_items_that_differ_are_counted_and_refused(runs: Path, tmp_path: Path) -> None:
    fewer = run(tmp_path / "fewer", lambda prompt, i: True, replace(SETTINGS, items=50))
    with pytest.raises(UserError, match=r"counting-512: the items differ: 10 of 60 are only in .*, 0 of 50 only in"):
        compare_runs([runs / "weak"], [fewer])
    other = run(tmp_path / "other", lambda prompt, i: True, replace(SETTINGS, seed=1))
    with pytest.raises(UserError, match="60 of 60 are only in"):
        compare_runs([runs / "weak"], [other])
    sorting = run(tmp_path / "sorting", lambda prompt, i: True, Settings(tasks=("sorting",), lengths=(512,), items=2))
    with pytest.raises(UserError, match="no task that both have"):
        compare_runs([runs / "weak"], [sorting])


def test_an_item_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    twice = run(tmp_path / "twice", lambda prompt, i: True)
    lines = (twice / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (twice / "samples.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(UserError, match="an item occurs twice"):
        compare_runs([runs / "weak"], [twice])


def test_answers_that_were_cut_off_widen_what_could_be(runs: Path, tmp_path: Path) -> None:
    cut = run(tmp_path / "cut", lambda prompt, i: i % 3 == 0, stop_reason="length")
    one = compare_runs([runs / "weak"], [cut])[0]
    assert one.truncated == (0, 60)
    assert one.bounds == pytest.approx((0 - 1 / 3, 1 - 1 / 3))


def test_items_that_did_not_come_back_are_left_out(runs: Path, tmp_path: Path) -> None:
    def reply(prompt: str, limit: int) -> Reply:
        return Reply(error="gone") if PLACE[prompt] < 7 else Reply(WITNESS[prompt], "stop", dropped=0)

    with pytest.raises(RunError):
        evaluate(Scripted(reply), SETTINGS, tmp_path / "gone")
    one = compare_runs([runs / "weak"], [tmp_path / "gone"])[0]
    assert one.left_out == 7 and one.comparison.n == 53


def test_several_seeds_a_side(tmp_path: Path) -> None:
    a = [run(tmp_path / f"a{s}", lambda prompt, i, s=s: (i * 7 + s) % 10 < 4) for s in range(3)]
    b = [run(tmp_path / f"b{s}", lambda prompt, i, s=s: (i * 7 + s) % 10 < 9) for s in range(3)]
    one = compare_runs(a, b)[0]
    assert one.comparison.seeds == (3, 3) and one.comparison.test == "items and seeds"
    assert one.comparison.verdict == "better"
    both = [[[(i * 7 + s) % 10 < k for i in range(60)] for s in range(3)] for k in (4, 9)]
    assert one.comparison.p_value == compare(*np.array(both, dtype=float), margin=0.02).p_value


# ---------------------------------------------------------------------------------------------------- losses of a text


def text_run(path: Path, nats_per_byte: float, tokenizer: str, noise: int = 0) -> Path:
    """A run with losses of 40 documents."""
    config = {
        "model": {"kind": "checkpoint", "path": path.name, "files": {"tokenizer.json": tokenizer}},
        "settings": {},
    }
    made = Run.create(path, command=[], config=config)
    random = np.random.default_rng(5)
    sizes, hard = random.integers(100, 1000, size=40).tolist(), random.normal(1, 0.2, size=40)
    own = np.random.default_rng(noise).normal(1, 0.01, size=40)
    (path / "documents").mkdir()
    with open(path / "documents/bits-per-byte.jsonl", "wb") as handle:
        for i, size in enumerate(sizes):
            nll = float(nats_per_byte * size * hard[i] * own[i])
            handle.write(encode_line({"document": str(i), "nll": nll, "tokens": size // 4, "bytes": size}))
    made.finish("finished")
    return path


def test_bits_per_byte_are_compared_and_tokens_of_two_tokenizers_are_not(tmp_path: Path) -> None:
    a, b = text_run(tmp_path / "a", 1.0, "one"), text_run(tmp_path / "b", 0.95, "two", noise=1)
    [one] = compare_runs([a], [b])
    assert (one.unit, one.comparison.verdict) == ("bits per byte", "better")
    lines = [json.loads(line) for line in (a / "documents/bits-per-byte.jsonl").read_text().splitlines()]
    total = sum(line["nll"] for line in lines) / np.log(2) / sum(line["bytes"] for line in lines)
    assert one.comparison.mean_a == pytest.approx(total)
    assert one.comparison.margin == pytest.approx(0.01 * total)
    with pytest.raises(UserError, match=r"the tokenizers differ.* bits per byte can be compared"):
        compare_runs([a], [b], per_token=True)
    same = text_run(tmp_path / "same", 1.0005, "one", noise=2)
    [tokens] = compare_runs([a], [same], per_token=True)
    assert (tokens.unit, tokens.comparison.verdict) == ("nats per token", "equivalent")


def test_what_is_no_evaluation(tmp_path: Path) -> None:
    Run.create(tmp_path / "other", command=[], config={})
    with pytest.raises(UserError, match="not an evaluation"):
        compare_runs([tmp_path / "other"], [tmp_path / "other"])
    assert cli.main(["compare", str(tmp_path / "none"), str(tmp_path / "none")]) == 2
    assert cli.main(["compare", "a", "b", "--alpha", "5"]) == 2
