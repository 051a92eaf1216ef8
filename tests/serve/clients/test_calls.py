"""Calls of OpenAI's client that servers of models are known to refuse, to ignore or to answer with something else."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest

from tests.serve.clients.conftest import KEY
from tests.serve.clients.test_openai import NO_END, QUESTION, Weather
from tests.serve.conftest import NAME

NAMES = ("look_up", "remember")
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Tokyo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
# No longer than they must be: the tiny model has room for 1,024 tokens.
RESPONSE_TOOLS = [{"type": "function", "name": name, "parameters": CITY, "strict": True} for name in NAMES]
CHAT_TOOLS = [
    {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    for tool in RESPONSE_TOOLS
]
CITIES = ({"city": "Paris"}, {"city": "Tokyo"})
SHORT = {"model": NAME, "messages": QUESTION, "max_tokens": 8, "logit_bias": NO_END}


def test_a_model_is_retrieved_by_its_name(client):
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_many_choices_with_a_seed(client):
    first, again, other = (client.chat.completions.create(**SHORT, n=3, seed=seed) for seed in (1, 1, 2))
    texts, repeated, others = (
        [choice.message.content for choice in answer.choices] for answer in (first, again, other)
    )
    assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == repeated and set(texts).isdisjoint(others)
    assert first.usage.completion_tokens == 24
    chunks = client.chat.completions.create(**SHORT, n=3, seed=1, stream=True)
    streamed = ["", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_strings(client):
    whole = client.chat.completions.create(**SHORT, temperature=0).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    choice = client.chat.completions.create(**SHORT, temperature=0, stop=[stop, "never said"]).choices[0]
    assert choice.finish_reason == "stop" and choice.message.content == whole[: whole.index(stop)]


def test_logprobs_of_a_chat(client):
    choice = client.chat.completions.create(**SHORT, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    assert b"".join(bytes(one.bytes) for one in choice.logprobs.content).decode(errors="replace")
    for one in choice.logprobs.content:
        assert len(one.top_logprobs) == 3 and one.logprob <= one.top_logprobs[0].logprob <= 0


def test_logprobs_of_an_echoed_text(client):
    choice = client.completions.create(
        model=NAME, prompt="the capital of Japan", echo=True, logprobs=2, max_tokens=3, temperature=0, logit_bias=NO_END
    ).choices[0]
    told = choice.logprobs
    assert choice.text.startswith("the capital of Japan")
    assert told.token_logprobs[0] is None and all(value < 0 for value in told.token_logprobs[1:])
    assert told.text_offset[0] == 0 and told.text_offset == sorted(told.text_offset)
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_function_is_called(client, name):
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 150, "tools": CHAT_TOOLS}
    choice = {"type": "function", "function": {"name": name}}
    called = client.chat.completions.create(**options, tool_choice=choice, parallel_tool_calls=False).choices[0]
    [call] = called.message.tool_calls
    assert called.finish_reason == "tool_calls" and call.function.name == name
    assert json.loads(call.function.arguments) in CITIES
    response = client.responses.create(
        model=NAME,
        input="hello",
        max_output_tokens=150,
        tools=RESPONSE_TOOLS,
        tool_choice={"type": "function", "name": name},
        parallel_tool_calls=False,
    )
    [item] = response.output
    assert (item.type, item.name) == ("function_call", name)
    assert json.loads(item.arguments) in CITIES


def test_a_response_must_call_or_must_not(client):
    options = {"model": NAME, "input": "hello", "max_output_tokens": 150, "tools": RESPONSE_TOOLS}
    with client.responses.stream(**options, tool_choice="required", parallel_tool_calls=False) as stream:
        events = list(stream)
        [item] = stream.get_final_response().output
    assert item.name in NAMES and json.loads(item.arguments) in CITIES
    said = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert said == item.arguments
    silent = client.responses.create(**options | {"max_output_tokens": 16}, tool_choice="none")
    assert {item.type for item in silent.output} <= {"message"}


def test_a_form_holds_in_every_way_to_ask(client):
    with client.responses.stream(model=NAME, input="?", max_output_tokens=120, text_format=Weather) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Weather)
    whatever = {"format": {"type": "json_object"}}
    text = client.responses.create(model=NAME, input="?", max_output_tokens=16, text=whatever).output_text
    assert text.lstrip().startswith("{")
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    pieces = client.chat.completions.create(
        model=NAME, messages=QUESTION, max_tokens=120, n=2, response_format=form, stream=True
    )
    texts = ["", ""]
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(json.loads(text) in CITIES for text in texts)


def test_a_response_that_is_not_there(client):
    for call in (
        lambda: client.responses.create(model=NAME, input="again", previous_response_id="resp_none"),
        lambda: client.responses.retrieve("resp_none"),
        lambda: client.responses.delete("resp_none"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            call()
        assert "resp_none" in error.value.message


def test_a_decision(client):
    question = {"type": "choice", "instructions": "Which?", "choices": [{"value": "Paris"}, {"value": "Tokyo"}]}
    [answer] = client.decisions.create(model=NAME, input="the capital of Japan", questions=[question]).answers
    assert answer.choice in ("Paris", "Tokyo")
    assert sum(one.probability for one in answer.probabilities) == pytest.approx(1)


BODIES = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "the"},
    "/v1/responses": {"input": "the"},
    "/v1/embeddings": {"input": "the"},
    "/v1/decisions": {"input": "the", "questions": [{"type": "predicate", "instructions": "It is."}]},
}


@pytest.mark.parametrize("path", BODIES)
def test_what_cannot_be_answered_is_refused_by_name(tiny_server, path):
    """An unknown model, an unknown field, a value of another type, a field that is missing, a body that is none."""
    given = {"model": NAME} | BODIES[path]
    missing = next(iter(BODIES[path]))
    wrong = {
        "model": (404, given | {"model": "another"}),
        "colour": (400, given | {"colour": 1}),
        missing: (400, {"model": NAME}),
        "user": (400, given | {"user": 5}),
    }
    with httpx2.Client(base_url=tiny_server, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http:
        assert http.post(path, json=given).status_code == 200
        for param, (status, body) in wrong.items():
            answer = http.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        for content in (json.dumps(given)[:-1], "[]", ""):
            answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and set(answer.json()["error"]) == {"message", "type", "param", "code"}
