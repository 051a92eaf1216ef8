"""A run that was stopped and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from inazuma.config import to_dict
from inazuma.errors import UserError
from inazuma.runs.run import Run
from inazuma.train import state
from inazuma.train.trainer import Trainer
from tests.train.recipes import STAGES, assert_same_bits, recipe, train, weights


def reproducible(run: Path) -> list[dict]:
    """The metrics without what a clock says."""
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in Run.open(run).metrics()]


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_resumed_is_uninterrupted_across_every_stage_boundary(corpus: Path, tmp_path: Path, matrices: str) -> None:
    """Stopped in the middle of each stage and on both boundaries; checkpoints, metrics and validation included."""
    config = recipe(corpus, optimizer={"matrices": matrices})
    whole = train(config, tmp_path / "whole")
    parts = train(config, tmp_path / "parts", stop_at=(2, 4, 6, 8, 11))
    assert_same_bits(weights(parts), weights(whole))
    assert_same_bits(load_file(tmp_path / "parts/model/model.safetensors"), weights(whole))
    assert reproducible(tmp_path / "parts") == reproducible(tmp_path / "whole")
    assert [line["step"] for line in Run.open(tmp_path / "parts").metrics() if line["kind"] == "train"] == [
        *range(1, 13)
    ]
    first, second = (load_file(state.checkpoints(tmp_path / name)[-1] / state.OPTIMIZER) for name in ("whole", "parts"))
    assert_same_bits(second, first)


def test_forty_steps_are_twenty_and_twenty(corpus: Path, tmp_path: Path) -> None:
    """In bfloat16, over several epochs of the corpus, with two passes a step."""
    stages = [stage | {"tokens": steps * 128} for stage, steps in zip(STAGES, (20, 5, 15), strict=True)]
    config = recipe(corpus, stages=stages, precision="bfloat16", checkpoint_every=100, validate_every=7)
    whole = train(config, tmp_path / "whole")
    assert_same_bits(weights(train(config, tmp_path / "parts", stop_at=(20,))), weights(whole))


def test_validating_does_not_change_training(corpus: Path, tmp_path: Path) -> None:
    often = train(recipe(corpus, validate_every=1), tmp_path / "often")
    seldom = train(recipe(corpus, validate_every=1000), tmp_path / "seldom")
    assert_same_bits(weights(often), weights(seldom))


def test_killed_at_random_moments_and_resumed_is_uninterrupted(corpus: Path, tmp_path: Path) -> None:
    """A real process, SIGKILLed again and again wherever it happens to be, then left to finish."""
    config = recipe(corpus, stages=[stage | {"tokens": 20 * 128} for stage in STAGES], checkpoint_every=4)
    whole = train(config, tmp_path / "whole")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    run = tmp_path / "killed"
    moments = random.Random(int.from_bytes(os.urandom(4), "big"))
    kills = 0
    for _ in range(40):
        began = (run / "manifest.json").exists()
        arguments = ["--resume", str(run)] if began else [str(file), "--out", str(run)]
        process = subprocess.Popen(
            [sys.executable, "-m", "inazuma", "train", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if kills < 4:
            before = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else -1
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:  # until it trains; then some moment more
                if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > max(before, 0):
                    break
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.6))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        _, errors = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert kills >= 2, "the run was over before it could be killed"
    assert_same_bits(load_file(run / "model/model.safetensors"), weights(whole))
    assert reproducible(run) == reproducible(tmp_path / "whole")
    assert not list(run.rglob(".partial-*"))
    events = [json.loads(line)["event"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert events.count("resumed") >= 1
    assert events[-1] == "finished"


def test_a_run_without_a_checkpoint_yet_resumes_from_the_beginning(corpus: Path, tmp_path: Path) -> None:
    config = recipe(corpus)
    Trainer.start(config, tmp_path / "run", command=["test"])  # and then the machine lost power
    trainer = Trainer.resume(tmp_path / "run")
    trainer.train()
    assert_same_bits(weights(trainer), weights(train(config, tmp_path / "whole")))


def test_what_cannot_be_resumed_says_so(corpus: Path, tmp_path: Path) -> None:
    config = recipe(corpus)
    train(config, tmp_path / "run")
    with pytest.raises(UserError, match="finished"):
        Trainer.resume(tmp_path / "run")
    with pytest.raises(UserError, match="not a run folder"):
        Trainer.resume(tmp_path)
    Trainer.start(config, tmp_path / "begun", command=["test"])
    other = recipe(corpus, optimizer={"weight_decay": 0.2})
    with pytest.raises(UserError, match=r"another configuration: optimizer.weight_decay was 0.1, now 0.2"):
        Trainer.resume(tmp_path / "begun", config=other)
    Run.open(tmp_path / "begun")
    manifest = json.loads((tmp_path / "begun/manifest.json").read_text())
    manifest["inputs"]["data"] = "0" * 64
    (tmp_path / "begun/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another corpus"):
        Trainer.resume(tmp_path / "begun")


def test_a_checkpoint_of_another_model_or_a_damaged_one_is_refused(corpus: Path, tmp_path: Path) -> None:
    config = recipe(corpus)
    trainer = Trainer.start(config, tmp_path / "run", command=["test"])
    path = state.save_checkpoint(tmp_path / "run", 3, trainer.train_step, keep=2)
    other = Trainer.start(recipe(corpus, model={"index_topk": 4}), tmp_path / "other", command=["test"])
    with pytest.raises(UserError, match="another model"):
        state.load_checkpoint(path, other.train_step)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: damaged"):
        Trainer.resume(tmp_path / "run")


def test_only_the_newest_checkpoints_are_kept(corpus: Path, tmp_path: Path) -> None:
    train(recipe(corpus, checkpoint_every=1, keep_checkpoints=3), tmp_path / "run")
    assert [path.name for path in state.checkpoints(tmp_path / "run")] == [f"step-{n:08}" for n in (10, 11, 12)]
