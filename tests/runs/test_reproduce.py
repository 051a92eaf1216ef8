"""Runs again: bit-identical, within tolerance and different are told apart; nothing is said without having looked."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import yaml

from inazuma import cli
from inazuma.config import from_dict, to_dict
from inazuma.errors import RunError, UserError
from inazuma.runs import Run, produce
from inazuma.runs.environment import build_environment, requirements
from inazuma.runs.reproduce import arguments_again, compare, reproduce
from inazuma.train.recipe import TrainConfig
from tests.train.recipes import recipe, train

WORDS = ["the", "sparse", "model", "reads", "few", "tokens", "of", "a", "long", "text", "稲妻"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/`, `recipe.yaml` and the run `runs/a`, made by the verbs."""
    folder = tmp_path_factory.mktemp("trained")
    words = random.Random(0)
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / f"texts/{number}.txt").write_text(" ".join(words.choices(WORDS, k=40)))
    build = ["data", "build", str(folder / "texts"), "--out", str(folder / "data"), "--vocab-size", "300"]
    assert cli.main([*build, "--validation-fraction", "0.2"]) == 0
    (folder / "recipe.yaml").write_text(yaml.safe_dump(to_dict(recipe(folder / "data"))))
    with pytest.MonkeyPatch.context() as patch:
        command = ["train", str(folder / "recipe.yaml"), "--out", str(folder / "runs/a")]
        patch.setattr("sys.argv", ["inazuma", *command])
        assert cli.main(command) == 0
    # What its command names is gone; the manifest has what it said.
    (folder / "recipe.yaml").unlink()
    return folder


def moved(trained: Path, to: Path, **config) -> Path:
    """A copy away from its ledger, whose manifest says another configuration."""
    shutil.copytree(trained / "runs/a", to)
    manifest = json.loads((to / "manifest.json").read_text())
    manifest["config"] |= config
    manifest["seeds"] |= {name: value for name, value in config.items() if name in manifest["seeds"]}
    (to / "manifest.json").write_text(json.dumps(manifest))
    return to


def test_a_training_is_bit_identical(trained, tmp_path, capsys):
    assert cli.main(["reproduce", str(trained / "runs/a"), "--out", str(tmp_path / "again"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "bit-identical" and found["off"] == [] and found["not_the_same"] in ([], [UNCLEAN])
    assert found["files"]["model/model.safetensors"] == "identical"
    assert found["files"]["metrics.jsonl"] == "identical but for the clock" and found["figures"] > 50
    # By another route: the very bytes.
    weights = [(path / "model/model.safetensors").read_bytes() for path in (trained / "runs/a", tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_training_with_another_seed_is_different(trained, tmp_path):
    recorded = Run.open(trained / "runs/a")
    config = from_dict(TrainConfig, recorded.manifest["config"] | {"seed": 1}, where="recipe")
    found = compare(recorded, train(config, tmp_path / "b").run, tolerance=1e-3)
    assert found.outcome == "different" and found.files["model/model.safetensors"] == "different"
    assert "1.loss" in {one.figure for one in found.off} and found.largest > 0.01


@pytest.mark.slow
def test_a_record_that_says_another_seed_is_different(trained, tmp_path, capsys):
    other = moved(trained, tmp_path / "other", seed=1)
    assert cli.main(["reproduce", str(other)]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("different (") and "bit-identical" not in printed
    assert "off: 1.loss: " in printed


UNCLEAN = "code: has changes now that are in no revision"


# ------------------------------------------------------------------------------------------ without running anything


def make(path: Path, value: float, *, speed: float = 1.0, model: str = "a", **more) -> Run:
    run = Run.create(path, command=["inazuma", "eval", "m", "--out", "x", "--force"], config={"k": 1})
    (run.path / "records.jsonl").write_text(json.dumps({"x": value, "tokens_per_second": speed}) + "\n")
    (run.path / "model.bin").write_text(model)
    (run.path / "report.html").write_text(str(speed))
    (run.path / "times.json").write_text(json.dumps({"seconds": [speed, speed], "peak_bytes": speed}))
    produce(run.path, {"x": {"formula": "mean", "record": "records.jsonl", "column": "x"}} | more)
    run.finish("finished")
    return run


def test_bit_identical_forgives_the_clock_alone(tmp_path):
    found = compare(make(tmp_path / "a", 2.0), make(tmp_path / "b", 2.0, speed=3.0), tolerance=0.5)
    assert found.outcome == "bit-identical" and found.figures == 1 and found.largest == 0
    assert found.files == {
        "evidence.json": "identical",
        "model.bin": "identical",
        "records.jsonl": "identical but for the clock",
        "report.html": "not compared",
        "result.json": "identical",
        "times.json": "identical but for the clock",
    }


def test_other_bits_are_never_bit_identical_and_the_tolerance_decides(tmp_path):
    a = make(tmp_path / "a", 2.0)
    assert compare(a, make(tmp_path / "b", 2.0, model="b"), tolerance=0.0).outcome == "within tolerance"
    near = compare(a, make(tmp_path / "c", 2.01), tolerance=0.01)
    assert near.outcome == "within tolerance" and near.largest == pytest.approx(0.01 / 2.01)
    far = compare(a, make(tmp_path / "d", 2.01), tolerance=0.004)
    assert far.outcome == "different" and [(one.figure, one.recorded, one.found) for one in far.off] == [("x", 2, 2.01)]


def test_a_missing_file_or_figure_is_different(tmp_path):
    a, b = make(tmp_path / "a", 2.0), make(tmp_path / "b", 2.0)
    del b.manifest["artefacts"]["model.bin"]
    assert compare(a, b, tolerance=1.0).outcome == "different"
    c = make(tmp_path / "c", 2.0, y={"formula": "mean", "record": "records.jsonl", "column": "x"})
    assert [one.figure for one in compare(a, c, tolerance=1.0).off] == ["y"]


def test_a_record_that_was_not_kept_is_judged_by_its_hash(tmp_path):
    a, b, c = make(tmp_path / "a", 2.0), make(tmp_path / "b", 2.0), make(tmp_path / "c", 2.0, model="c")
    for name in ("model.bin", "records.jsonl"):
        (a.path / name).unlink()
    assert compare(a, b, tolerance=0.0).outcome == "bit-identical"
    assert compare(a, c, tolerance=0.0).files["model.bin"] == "different"


def test_what_was_not_the_same_is_said(tmp_path):
    a, b = make(tmp_path / "a", 2.0), make(tmp_path / "b", 2.0)
    b.manifest["machine"]["cores"] += 1
    b.manifest["packages"]["numpy"] = "0.1"
    told = [line for line in compare(a, b, tolerance=0.0).not_the_same if line != UNCLEAN]
    assert len(told) == 2 and told[0].startswith("machine.cores: ") and told[1].endswith(" then, 0.1 now")


def test_a_command_is_repeated_into_another_folder(tmp_path):
    run = make(tmp_path / "a", 2.0)
    assert arguments_again(run, tmp_path / "new", tmp_path / "r") == ["eval", "m", "--out", str(tmp_path / "new")]


def interpreter(path: Path, *lines: str) -> Path:
    """A program in the place of Python's interpreter, whose last argument is the new run's folder."""
    path.write_text("\n".join(["#!/bin/sh", 'for out; do :; done; mkdir "$out"', *lines, ""]))
    path.chmod(0o755)
    return path


def test_what_turns_out_to_be_other_work_is_stopped(tmp_path):
    run = make(tmp_path / "a", 2.0)
    for part, other in [("inputs", {"data": "0" * 64}), ("config", {"k": 2}), ("seeds", {"seed": 1})]:
        (tmp_path / f"{part}.json").write_text(json.dumps(run.manifest | {part: other}))
        python = interpreter(tmp_path / part, f'cp {tmp_path}/{part}.json "$out/manifest.json"', "exec sleep 60")
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"{part}\.\w+ was .* now: it would be another run"):
            reproduce(run.path, tmp_path / f"new-{part}", tolerance=0.0, python=python)
        assert time.monotonic() - began < 30


def test_what_the_command_line_said_is_the_error(tmp_path):
    run = make(tmp_path / "a", 2.0)
    python = interpreter(tmp_path / "python", "echo first; echo 'inazuma: error: no data' >&2; exit 2")
    with pytest.raises(RunError, match="ended with exit code 2: inazuma: error: no data"):
        reproduce(run.path, tmp_path / "new", tolerance=0.0, python=python)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": ["python", "x.py"]}, r"'command' is 'python x\.py', no verb of inazuma"),
        ({"status": "running"}, r"did not finish \(running\)"),
        ({"artefacts": {}}, "names no artefacts"),
    ],
)
def test_what_a_manifest_lacks_is_one_line(tmp_path, change, message):
    run = make(tmp_path / "a", 2.0)
    (tmp_path / "ledger.jsonl").unlink()
    (run.path / "manifest.json").write_text(json.dumps(run.manifest | change))
    with pytest.raises(UserError, match=message):
        reproduce(run.path, tmp_path / "new", tolerance=0.0)
    assert not (tmp_path / "new").exists()


def test_an_edited_record_is_not_reproduced(tmp_path):
    run = make(tmp_path / "a", 2.0)
    (run.path / "model.bin").write_text("edited")
    with pytest.raises(UserError, match=r"model\.bin: edited: its SHA-256 is [0-9a-f]{64}, recorded is [0-9a-f]{64}"):
        reproduce(run.path, tmp_path / "new", tolerance=0.0)
    (run.path / "model.bin").write_text("a")
    manifest = (run.path / "manifest.json").read_text()
    (run.path / "manifest.json").write_text(manifest.replace('"k": 1', '"k": 2'))
    with pytest.raises(UserError, match="not the one that the ledger saw"):
        reproduce(run.path, tmp_path / "new", tolerance=0.0)


def test_a_fresh_environment_needs_packages_and_a_clean_revision(tmp_path):
    run = make(tmp_path / "a", 2.0)
    run.manifest["packages"] = {"inazuma": "0.1.0", "numpy": "2.4.6", "pip": "23", "torch": "2.13.0"}
    run.manifest["code"] = {"version": "0.1.0", "revision": "a" * 40, "clean": True}
    assert requirements(run) == ["numpy==2.4.6", "torch==2.13.0"]
    for change, message in [
        ({"packages": {}}, "'packages' is missing"),
        ({"code": {"revision": None}}, r"'code\.revision' is missing"),
        ({"code": {"revision": "a", "clean": False}}, "in no revision"),
    ]:
        with pytest.raises(UserError, match=message):
            requirements(Run(run.path, run.manifest | change))


@pytest.mark.slow  # a virtual environment takes seconds
def test_building_an_environment_that_cannot_be_had_says_why(tmp_path, monkeypatch):
    """pip is the real one, with nowhere to look."""
    run = make(tmp_path / "a", 2.0)
    run.manifest["packages"] = {"no-such-package-anywhere": "9.9"}
    run.manifest["code"] = {"version": "0.1.0", "revision": "a" * 40, "clean": True}
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RunError, match=r"installing the recorded packages failed: ERROR: .*no-such-package-anywhere"):
        build_environment(run, tmp_path)


def test_a_claim_names_the_run_of_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a", 2.0)
    claims = {
        "claims": [
            {"id": "c", "text": "t", "figures": {"f": {"value": "2.0", "formula": "of_run", "run": "a", "name": "x"}}},
            {
                "id": "d",
                "text": "t",
                "command": "python b.py",
                "figures": {"f": {"value": "2.0", "formula": "value", "record": "b.json", "field": "x"}},
            },
        ]
    }
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims))
    assert cli.reproduce._run_of_claim("c", Path("claims.yaml")) == Path("a")
    assert cli.main(["reproduce", "d"]) == 2
    assert "make it again with `python b.py`" in capsys.readouterr().err
    assert cli.main(["reproduce", "e"]) == 2
    assert "no such run folder, and no such claim" in capsys.readouterr().err
