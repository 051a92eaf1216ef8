"""Typed questions: probabilities against the model's own log-likelihoods."""

from __future__ import annotations

import json
import math

import openai
import pytest
import torch

from tests.serve.conftest import CHATML, NAME, make_folder, serving

QUESTIONS = [
    {"type": "predicate", "name": "urgent", "instructions": "It is urgent."},
    {
        "type": "choice",
        "name": "city",
        "instructions": "Which city?",
        "choices": [{"value": "Paris"}, {"value": "Tokyo", "description": "in Japan"}, {"value": True}],
    },
    {
        "type": "score",
        "instructions": "How good?",
        "levels": [{"label": "bad"}, {"label": "good"}, {"label": "very good"}],
    },
]


def likelihood(live, prompt: str, answer: str) -> float:
    """Of the answer and the end of the message after the prompt."""
    tokenizer = live.tokenizer
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    after = [*tokenizer.encode(answer, add_special_tokens=False).ids, tokenizer.token_to_id("<|im_end|>")]
    with torch.inference_mode():
        rows = live.engine.model(torch.tensor([before + after]))[0].double().log_softmax(-1)
    return sum(rows[len(before) - 1 + i, token].item() for i, token in enumerate(after))


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def test_probabilities_are_the_models(live, client):
    decision = client.decisions.create(model=NAME, input="Paris is burning", questions=QUESTIONS)
    urgent, city, score = decision.answers
    assert (urgent.name, city.name, score.name) == ("urgent", "city", None)

    lines = "Which city?\n- Paris\n- Tokyo: in Japan\n- true\nAnswer with one of these and nothing else."
    prompt = f"<|im_start|>user\nParis is burning\n\n{lines}<|im_end|>\n<|im_start|>assistant\n"
    expected = softmax([likelihood(live, prompt, answer) for answer in ("Paris", "Tokyo", "true")])
    assert [option.probability for option in city.probabilities] == pytest.approx(expected, abs=1e-4)
    assert [option.value for option in city.probabilities] == ["Paris", "Tokyo", True]
    best = max(range(3), key=expected.__getitem__)
    assert city.choice == ["Paris", "Tokyo", True][best] and city.confidence == pytest.approx(expected[best], abs=1e-4)

    assert 0 < urgent.probability < 1
    assert sum(option.probability for option in score.probabilities) == pytest.approx(1)
    assert score.score == pytest.approx(sum(option.value * option.probability for option in score.probabilities))
    assert [option.label for option in score.probabilities] == ["bad", "good", "very good"]
    assert decision.usage.output_tokens == 0 and decision.usage.input_tokens > 0


def test_messages_and_parts(live, client):
    said = client.decisions.create(model=NAME, input="Paris is burning", questions=QUESTIONS[:1]).answers[0]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Paris is burning"}]}]
    assert client.decisions.create(model=NAME, input=parts, questions=QUESTIONS[:1]).answers[0] == said
    data = [{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}]
    client.decisions.create(model=NAME, input=data, questions=QUESTIONS[:1])
    assert '{"a": 1}' in live.tokenizer.decode(live.engine.requests[-1].prompt)


def test_temperature_of_the_folder(tmp_path, live):
    folder = make_folder(tmp_path / "m", CHATML)
    (folder / "decision.json").write_text('{"temperature": 2.5}')
    question = QUESTIONS[0]
    with serving(folder) as calibrated:
        ask = {"model": NAME, "input": "x", "questions": [question]}
        cool = live.client().decisions.create(**ask).answers[0].probability
        warm = calibrated.client().decisions.create(**ask).answers[0].probability
    assert math.log(warm / (1 - warm)) == pytest.approx(math.log(cool / (1 - cool)) / 2.5, abs=1e-4)


@pytest.mark.parametrize("content", ['{"temperature": 0}', '{"temperature": "1"}', '{"scale": 2}', "[]"])
def test_a_temperature_that_is_none_is_refused(folder, tmp_path, content):
    import shutil

    from inazuma.errors import UserError
    from inazuma.serve.served import Served

    copy = tmp_path / "m"
    shutil.copytree(folder, copy)
    (copy / "decision.json").write_text(content)
    with pytest.raises(UserError, match=r"decision\.json"):
        Served.read(copy, "m", None)


def test_systemone_says_the_same(live, client):
    body = {
        "state": "Paris is burning",
        "questions": {
            "urgent": {"type": "noul", "instructions": "Is it urgent?"},
            "city": {"type": "choice", "instructions": "Which city?", "criteria": {"Paris": None, "Tokyo": "in Japan"}},
            "how": {"type": "score", "criteria": ["bad", {"good": 1}]},
        },
    }
    answer = live.post("/v1/systemone", body).json()
    city = answer["answers"]["city"]
    assert set(city) == {"type", "choice", "probabilities", "confidence"}
    p = city["probabilities"]
    assert sum(p.values()) == pytest.approx(1) and p[city["choice"]] == max(p.values())
    assert city["confidence"] == pytest.approx(2 * max(p.values()) - 1)
    assert set(answer["answers"]["urgent"]) == {"type", "noul"}
    how = answer["answers"]["how"]
    assert how["legend"] == {"0": "bad", "1": '{"good": 1}'}
    assert how["score"] == pytest.approx(how["probabilities"]["1"])
    same = client.decisions.create(
        model=NAME,
        input="Paris is burning",
        questions=[QUESTIONS[1] | {"choices": [{"value": "Paris"}, {"value": "Tokyo", "description": "in Japan"}]}],
    )
    assert [option.probability for option in same.answers[0].probabilities] == pytest.approx(list(p.values()))


@pytest.mark.parametrize(
    "change",
    [
        {"questions": []},
        {"questions": [{"type": "box", "instructions": "x"}]},
        {"questions": [QUESTIONS[1] | {"choices": [{"value": "a"}]}]},
        {"questions": [QUESTIONS[1] | {"choices": [{"value": "a"}, {"value": "a"}]}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
        {"temperature": 1},
    ],
)
def test_bad_questions(client, change):
    with pytest.raises(openai.BadRequestError) as error:
        client.decisions.create(**{"model": NAME, "input": "x", "questions": QUESTIONS} | _extra(change))
    assert error.value.param.startswith(next(iter(change)))


def _extra(change: dict) -> dict:
    return {"extra_body": change} if "temperature" in change else json.loads(json.dumps(change))
