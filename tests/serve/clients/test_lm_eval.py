"""lm-eval's own models for servers: scored choices by `/v1/completions`, written answers by `/v1/chat/completions`."""

from __future__ import annotations

import json

import lm_eval
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager

import inazuma
from tests.serve.clients.conftest import KEY
from tests.serve.conftest import NAME

DOCS = [
    {"question": "the capital of France is", "choices": ["Paris", "Tokyo", "true and false"], "gold": 0},
    {"question": "the capital of Japan is", "choices": ["Paris yes", "Tokyo"], "gold": 1},
    {"question": "yes no true", "choices": ["false", "capital", "no"], "gold": 0},
]


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> TaskManager:
    """A task of choices and one of answers, over the same questions."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choices = {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    answers = {
        "task": "answers",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choices, answers):
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump(shared | task))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def evaluate(tasks: TaskManager, model: str, arguments: str, task: str, **options):
    return lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=[task],
        task_manager=tasks,
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )


def test_choices_have_the_models_own_likelihoods(tiny_server, folder, tasks):
    arguments = f"model={NAME},base_url={tiny_server}/v1/completions,tokenizer={folder},num_concurrent=2,max_length=500"
    found = evaluate(tasks, "local-completions", arguments, "choices")
    model = inazuma.load(folder)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    right = 0
    for sample in found["samples"]["choices"]:
        doc, expected = sample["doc"], []
        for choice in doc["choices"]:
            start = len(tokenizer.encode(doc["question"]).ids)
            ids = tokenizer.encode(f"{doc['question']} {choice}").ids
            with torch.inference_mode():
                rows = model(torch.tensor([ids]))[0].double().log_softmax(-1)
            expected.append(sum(float(rows[at - 1, ids[at]]) for at in range(start, len(ids))))
        given = [float(answer[0][0]) for answer in sample["resps"]]
        assert given == pytest.approx(expected, abs=2e-3)
        right += expected.index(max(expected)) == doc["gold"]
    assert found["results"]["choices"]["acc,none"] == pytest.approx(right / len(DOCS))


def test_answers_are_what_the_server_writes(tiny_server, client, tasks):
    arguments = f"model={NAME},base_url={tiny_server}/v1/chat/completions,num_concurrent=2"
    found = evaluate(tasks, "local-chat-completions", arguments, "answers", apply_chat_template=True)
    for sample in found["samples"]["answers"]:
        asked = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": sample["doc"]["question"]}],
            max_tokens=6,
            temperature=0,
            stop=["\n\n"],
        )
        assert sample["resps"][0][0] == asked.choices[0].message.content
