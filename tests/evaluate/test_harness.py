"""lm-evaluation-harness itself, on tasks made here: what it asks, what it scores, and what it would have lost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("lm_eval")
import inazuma
from inazuma.errors import RunError, UserError
from inazuma.evaluate.answering import Reply
from inazuma.evaluate.evaluate import Settings, evaluate
from inazuma.evaluate.local import LocalModel
from inazuma.evaluate.outcome import read_samples
from inazuma.runs import verify
from tests.evaluate.conftest import Scripted

QUESTIONS = [
    {"question": "the baker carried", "choices": ["a chair", "the lantern", "a long rope"], "answer": 1},
    {"question": "the baker carried", "choices": ["the kettle", "a clock", "a long rope"], "answer": 1},
    {"question": "a sailor found", "choices": ["bread", "an iron key", "a coat"], "answer": 0},
    {"question": "a sailor found", "choices": ["bread", "an iron key", "a coat"], "answer": 0},  # the same item
    {"question": "word " * 1200, "choices": ["yes", "no", "perhaps"], "answer": 2},  # does not fit
]
COMMON = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of three tasks: a choice, a text to write, a text to read."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    texts = [{"text": "the gardener sold a torn letter near the river."}, {"text": "稲妻 on the hill"}]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    common = COMMON | {"dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}}
    mean = {"aggregation": "mean", "higher_is_better": True}
    choice = common | {
        "task": "tiny_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **mean}],
    }
    write = common | {
        "task": "tiny_write",
        "output_type": "generate_until",
        "doc_to_text": "{{question}} {{choices[0]}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **mean}],
    }
    read = COMMON | {
        "task": "tiny_read",
        "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    for task in (choice, write, read):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task))
    return str(folder)


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def settings(tasks: str, *names: str) -> Settings:
    return Settings(tasks=tuple(f"lm-eval:{name}" for name in names), include_path=tasks)


def test_a_checkpoint_through_the_harness(checkpoint: Path, tasks: str, tmp_path: Path) -> None:
    model = LocalModel(checkpoint)
    result = evaluate(model, settings(tasks, "tiny_choice", "tiny_write", "tiny_read"), tmp_path / "run")
    assert [check.name for check in verify(tmp_path / "run") if not check.ok] == []
    samples = read_samples(tmp_path / "run")
    choice = [sample for sample in samples if sample.task == "lm-eval:tiny_choice"]
    reference = inazuma.load(checkpoint)
    for sample, doc in zip(choice[:3], QUESTIONS, strict=False):
        # What the model finds likeliest, from its logits and nothing of the adapter.
        sums = []
        for text in doc["choices"]:
            before = model.tokenizer.encode(doc["question"]).ids
            ids = model.tokenizer.encode(f"{doc['question']} {text}").ids
            with torch.no_grad():
                logs = reference(torch.tensor([ids]))[0].double().log_softmax(-1)
            sums.append(sum(float(logs[i - 1, ids[i]]) for i in range(len(before), len(ids))))
        best = max(range(3), key=sums.__getitem__)
        assert sample.answer == f" {doc['choices'][best]}"
        assert sample.score == float(best == doc["answer"])
        assert sample.outcome == ("correct" if sample.score else "wrong")
        assert sample.chance == pytest.approx(1 / 3)
    assert choice[3].outcome == "invalid_item" and choice[3].error == "the same item as 2"
    assert choice[4].outcome == "invalid_item" and choice[4].prompt_tokens_dropped > 0
    assert result["tasks"]["lm-eval:tiny_choice"]["n"] == 3
    written = [sample for sample in samples if sample.task == "lm-eval:tiny_write"]
    for sample in written[:3]:
        assert sample.stop_reason in ("stop", "length") and sample.generated_tokens <= sample.max_tokens == 6
        assert (sample.outcome == "truncated") == (sample.stop_reason == "length")
        assert "." not in sample.answer
    assert written[4].outcome == "invalid_item"
    read = result["bits_per_byte"]["lm-eval:tiny_read"]
    nats = sum(
        model.text_nats(text)[0] for text in ("the gardener sold a torn letter near the river.", "稲妻 on the hill")
    )
    assert read["value"] == pytest.approx(nats / math.log(2) / (47 + 18))
    assert read["bytes"] == 47 + 18


def test_an_address_that_fails_in_the_middle_is_asked_for_the_rest_only(tasks: str, tmp_path: Path) -> None:
    down = True

    def reply(prompt: str, limit: int) -> Reply:
        return Reply(error="gone") if down and "sailor" in prompt else Reply("an iron key. And", "stop")

    model = Scripted(reply, at_once=2)
    with pytest.raises(RunError, match="1 of 5 items met infrastructure errors"):
        evaluate(model, settings(tasks, "tiny_write"), tmp_path / "run")
    down, model.asked = False, []
    evaluate(model, settings(tasks, "tiny_write"), tmp_path / "run")
    assert model.asked == ["a sailor found bread"]
    assert {sample.answer for sample in read_samples(tmp_path / "run")} == {"an iron key"}


@pytest.mark.slow  # the harness reads all its tasks to know that it has no such one
def test_a_task_that_nobody_has(tasks: str, tmp_path: Path) -> None:
    model = Scripted(lambda prompt, limit: Reply("no", "stop"))
    with pytest.raises(UserError, match=r"lm-eval:nothing_like_it: lm-evaluation-harness \S+ has no such task"):
        evaluate(model, settings(tasks, "nothing_like_it"), tmp_path / "one")


def test_an_address_has_no_likelihoods(tasks: str, tmp_path: Path) -> None:
    model = Scripted(lambda prompt, limit: Reply("no", "stop"))
    with pytest.raises(UserError, match="need a checkpoint on this machine"):
        evaluate(model, settings(tasks, "tiny_choice"), tmp_path / "two")


@pytest.mark.slow
def test_the_harness_own_command_line_knows_our_models(checkpoint: Path, tasks: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "inazuma.evaluate.lm_eval", "run", "--model", "inazuma", "--tasks", "tiny_choice"]
    command += ["--model_args", f"pretrained={checkpoint}", "--include_path", tasks, "--output_path", str(tmp_path)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [results] = tmp_path.rglob("results*.json")
    assert "acc,none" in json.loads(results.read_text())["results"]["tiny_choice"]
