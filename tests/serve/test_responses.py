"""`/v1/responses`, asked by OpenAI's client."""

from __future__ import annotations

import json

import openai
import pytest

from tests.serve.conftest import NAME
from tests.serve.test_chat import CALL, City, thinking  # noqa: F401

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "d",
    "strict": False,
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Tokyo", "Paris"]}}, "required": ["city"]},
}


def test_a_text(live, client):
    live.says("It is Tokyo.")
    response = client.responses.create(model=NAME, input="the capital?", instructions="Be brief.", temperature=0)
    assert response.output_text == "It is Tokyo." and response.status == "completed"
    assert response.usage.output_tokens == len(live.engine.say)
    assert response.usage.input_tokens == len(live.engine.requests[-1].prompt)
    prompt = live.tokenizer.decode(live.engine.requests[-1].prompt)
    assert "Be brief." in prompt and "the capital?" in prompt


def test_too_short_is_incomplete(live, client):
    live.says("It is Tokyo.")
    response = client.responses.create(model=NAME, input="?", max_output_tokens=2, temperature=0)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"


def test_stream_tells_the_same(live, client):
    live.says("It is Tokyo.")
    kinds, text = [], ""
    with client.responses.stream(model=NAME, input="?", temperature=0) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = stream.get_final_response()
    assert text == final.output_text == "It is Tokyo."
    order = list(dict.fromkeys(kinds))
    assert order == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_events_are_numbered(live, client):
    events = list(client.responses.create(model=NAME, input="?", max_output_tokens=5, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_reasoning_is_an_item(thinking):  # noqa: F811
    thinking.says("<think>hm</think>It is Tokyo.")
    client = thinking.client()
    response = client.responses.create(model=NAME, input="?", temperature=0, reasoning={"effort": "low"})
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "hm" and response.output_text == "It is Tokyo."
    assert response.usage.output_tokens_details.reasoning_tokens == len(thinking.ids("hm"))
    kinds = {event.type for event in client.responses.create(model=NAME, input="?", temperature=0, stream=True)}
    assert {"response.reasoning_text.delta", "response.reasoning_text.done"} <= kinds


def test_parse(live, client):
    response = client.responses.parse(model=NAME, input="?", text_format=City)
    assert isinstance(response.output_parsed, City)


def test_a_call_and_its_answer(live, client):
    live.says(CALL)
    first = client.responses.create(model=NAME, input="weather?", tools=[TOOL], temperature=0)
    [call] = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Tokyo"}
    live.says("Sunny.")
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    # Once as a conversation that the server remembers, once as one that the client sends: the same prompt.
    client.responses.create(model=NAME, previous_response_id=first.id, input=[answer], tools=[TOOL], temperature=0)
    sent = [{"role": "user", "content": "weather?"}, call.model_dump(exclude_none=True), answer]
    second = client.responses.create(model=NAME, input=sent, tools=[TOOL], temperature=0)
    assert live.engine.requests[-1].prompt == live.engine.requests[-2].prompt
    assert second.output_text == "Sunny."
    with client.responses.stream(
        model=NAME, input="weather?", tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        [streamed] = stream.get_final_response().output
    assert streamed.name == "weather" and json.loads(streamed.arguments)["city"] in ("Tokyo", "Paris")


def test_previous_response(live, client):
    live.says("It is Tokyo.")
    first = client.responses.create(model=NAME, input="Japan?", instructions="Be brief.", temperature=0)
    client.responses.create(model=NAME, input="France?", previous_response_id=first.id, max_output_tokens=1)
    prompt = live.tokenizer.decode(live.engine.requests[-1].prompt)
    assert prompt.index("Japan?") < prompt.index("It is Tokyo.") < prompt.index("France?")
    assert "Be brief." not in prompt, "instructions are not carried over"
    assert client.responses.retrieve(first.id).output_text == "It is Tokyo."
    client.responses.delete(first.id)
    for forgotten in (first.id, "resp_none"):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model=NAME, input="?", previous_response_id=forgotten)
    unstored = client.responses.create(model=NAME, input="?", store=False, max_output_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_logprobs(live, client):
    live.says("Tokyo")
    response = client.responses.create(
        model=NAME, input="?", temperature=0, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    logprobs = response.output[0].content[0].logprobs
    assert "".join(entry.token for entry in logprobs) == "Tokyo" and len(logprobs[0].top_logprobs) == 2


def test_failure_is_told(live, client):
    live.engine.fail = True
    events = list(client.responses.create(model=NAME, input="?", stream=True))
    assert events[-1].type == "response.failed" and "secret" not in events[-1].model_dump_json()


@pytest.mark.parametrize(
    ("option", "param"),
    [
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"conversation": "c"}, "conversation"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]}, "input[0].content[0]"),
    ],
)
def test_what_is_not_there_is_refused_by_name(live, client, option, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**{"model": NAME, "input": "?"} | option)
    assert error.value.param.startswith(param)
