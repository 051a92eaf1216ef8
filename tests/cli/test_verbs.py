"""The verbs as a person uses them: data build, train, generate and verify in a row; and one line for each mistake."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from inazuma import cli
from inazuma.config import to_dict
from inazuma.files import write_json
from tests.train.recipes import recipe

WORDS = ["lightning", "strikes", "the", "sparse", "tree", "稲妻", "and", "rests", "until", "thunder", "rolls", "over"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `texts/`, and what three verbs made of them: `data/`, `recipe.yaml`, `run/`."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "texts").mkdir()
    words = random.Random(1)
    for number in range(80):
        text = " ".join(words.choices(WORDS, k=40))
        (folder / f"texts/{number}.txt").write_text(text)
    options = ["--vocab-size", "300", "--validation-fraction", "0.2"]
    assert cli.main(["data", "build", str(folder / "texts"), "--out", str(folder / "data"), *options]) == 0
    (folder / "recipe.yaml").write_text(yaml.safe_dump(to_dict(recipe(folder / "data"))))
    command = ["train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--set", "stages.2.tokens=2 * 128"]
    assert cli.main(command) == 2  # arithmetic is not a number
    command[-1] = "stages.2.tokens=256"
    assert cli.main(command) == 0
    return folder


def test_a_run_from_text_to_text(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (workshop / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["kind"] == "train"] == ["dense"] * 4 + ["warmup"] * 4 + [
        "sparse"
    ] * 2
    generate = ["generate", str(workshop / "run/model"), "--prompt", "the sparse", "--max-new-tokens", "5"]
    assert cli.main([*generate, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["prompt"] == "the sparse"
    assert cli.main(generate) == 0
    assert capsys.readouterr().out == f"the sparse{first['text']}\n"
    sampled = [*generate, "--temperature", "1.5", "--seed", "3", "--json"]
    assert cli.main(sampled) == 0 and cli.main(sampled) == 0
    once, again = capsys.readouterr().out.splitlines()
    assert once == again


def test_small_memory(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate = ["generate", str(workshop / "run/model"), "--prompt", "the sparse", "--max-new-tokens", "5"]
    for kind in ("int8", "int4"):
        assert cli.main([*generate, "--quantize", kind]) == 0
        assert capsys.readouterr().out.startswith("the sparse")
    for options, message in (
        (["--memory", "1GB"], "no routed experts"),
        (["--memory", "much"], "expected a size such as"),
        (["--memory", "1GB", "--quantize", "int8"], "leave out --quantize"),
    ):
        assert cli.main([*generate, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "count"), [("800MB", 800_000_000), ("1.5gb", 1_500_000_000), ("2GiB", 2**31), ("12K", 12_000), ("7", 7)]
)
def test_sizes(size: str, count: int) -> None:
    assert cli.generate.parse_size("--memory", size) == count


def test_without_out_a_run_is_named_after_its_recipe(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [word for stage in range(3) for word in ("--set", f"stages.{stage}.tokens=1")]
    assert cli.main(["train", str(workshop / "recipe.yaml"), *short]) == 0
    assert (tmp_path / "runs/recipe/model/config.json").exists()


def test_a_finished_run_is_not_resumed(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--resume", str(workshop / "run")]) == 2
    assert "finished" in capsys.readouterr().err


TRAIN = ["train", "{w}/recipe.yaml", "--out", "{w}/new"]
TWO_GROUPS = ["--set", "model.attention=gqa", "--set", "model.num_key_value_heads=2"]
MISTAKES = {
    "an empty corpus": (["data", "build", "{w}/empty", "--out", "{w}/new"], "empty"),
    "a missing corpus": (["data", "build", "{w}/nowhere", "--out", "{w}/new"], "nowhere"),
    "a binary file": (["data", "build", "{w}/binary.txt", "--out", "{w}/new"], "binary.txt"),
    "a truncated Parquet file": (["data", "build", "{w}/cut.parquet", "--out", "{w}/new"], "cut.parquet"),
    "a vocabulary beyond the text": (
        ["data", "build", "{w}/texts", "--out", "{w}/new", "--vocab-size", "60000"],
        "larger than the text can fill",
    ),
    "data over something": (["data", "build", "{w}/texts", "--out", "{w}/data"], "exists"),
    "a missing recipe": (["train", "{w}/none.yaml", "--out", "{w}/new"], "none.yaml"),
    "an unknown key": ([*TRAIN, "--set", "model.index_topp=4"], "index_topk"),
    "k beyond the context": (
        [*TRAIN, "--set", "model.index_topk=40"],
        "larger than context",
    ),
    "heads that do not divide": (
        [*TRAIN, *TWO_GROUPS, "--set", "model.num_attention_heads=3"],
        "num_attention_heads",
    ),
    "a run over something": (["train", "{w}/recipe.yaml", "--out", "{w}/run"], "exists"),
    "neither a recipe nor a run": (["train"], "pass CONFIG.yaml"),
    "two folders": (["train", "--resume", "{w}/run", "--out", "{w}/new"], "leave --out away"),
    "fields of nothing": (["train", "--resume", "{w}/run", "--set", "seed=1"], "CONFIG.yaml"),
    "a missing model": (["generate", "{w}/nowhere", "--prompt", "x"], "no such model folder"),
    "no model at all": (["generate", "{w}/texts", "--prompt", "x"], "config.json"),
    "too many tokens": (
        ["generate", "{w}/run/model", "--prompt", "x", "--max-new-tokens", "100"],
        "exceed the model's 64 positions",
    ),
    "no run": (["verify", "{w}/texts"], "not a run folder"),
    "a demo of nothing": (["demo", "--data", "{w}/nowhere", "--out", "{w}/new"], "nowhere"),
    "a demo of too little": (
        ["demo", "--data", "{w}/texts/1.txt", "--out", "{w}/new"],
        "larger than the text can fill",
    ),
    "a demo over something": (["demo", "--data", "{w}/texts", "--out", "{w}/data"], "exists"),
}


@pytest.mark.parametrize(("command", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    workshop: Path, capsys: pytest.CaptureFixture[str], command: list[str], said: str
) -> None:
    (workshop / "empty").mkdir(exist_ok=True)
    (workshop / "binary.txt").write_bytes(bytes(range(256)) * 16)
    (workshop / "cut.parquet").write_bytes(b"PAR1" + bytes(40))
    before = sorted(path for path in workshop.rglob("*"))
    assert cli.main([word.format(w=workshop) for word in command]) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("inazuma: error: ") and said in last
    assert "Traceback" not in captured.err and not captured.out
    assert sorted(path for path in workshop.rglob("*")) == before


def test_figures_without_evidence_do_not_pass(workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(workshop / "run/result.json", {"made_up": 1.0})
    write_json(workshop / "run/evidence.json", {})
    try:
        assert cli.main(["verify", str(workshop / "run")]) == 1
        assert "made_up" in capsys.readouterr().out
    finally:
        (workshop / "run/result.json").unlink()
        (workshop / "run/evidence.json").unlink()
