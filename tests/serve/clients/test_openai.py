"""OpenAI's own client, over a socket, against a process: connections, streams that are left, and each error's class."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.serve.clients.conftest import KEY
from tests.serve.conftest import NAME, until

QUESTION = [{"role": "user", "content": "the capital of Japan?"}]
NO_END = {"0": -100, "301": -100}


class Weather(BaseModel):
    city: Literal["Paris", "Tokyo"]
    degrees: Literal[10, 20]


def gauges(url: str) -> dict[str, float]:
    text = httpx2.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_one_connection_serves_many_calls(client):
    assert [model.id for model in client.models.list()] == [NAME]
    options = {"model": NAME, "messages": QUESTION, "temperature": 0, "max_tokens": 6, "logit_bias": NO_END}
    whole = client.chat.completions.create(**options)
    for _ in range(3):
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_async_clients_get_what_each_asked_for(tiny_server):
    async def ask(client: openai.AsyncOpenAI, seed: int, stream: bool) -> str:
        options = {"model": NAME, "messages": QUESTION, "seed": seed, "max_tokens": 12, "logit_bias": NO_END}
        if not stream:
            return (await client.chat.completions.create(**options)).choices[0].message.content
        pieces = await client.chat.completions.create(**options, stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in pieces])

    async def both() -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{tiny_server}/v1", api_key=KEY, max_retries=0) as client:
            return [await asyncio.gather(*(ask(client, seed, kind) for seed in range(16))) for kind in (True, False)]

    streamed, whole = asyncio.run(both())
    assert streamed == whole and len(set(whole)) == 16


def test_a_stream_that_is_left_is_computed_no_longer(client, tiny_server):
    def running() -> float:
        return gauges(tiny_server)["inazuma_requests_running"]

    before = gauges(tiny_server)['inazuma_requests_total{reason="cancelled"}']
    streams = [
        client.completions.create(model=NAME, prompt="the", max_tokens=900, logit_bias=NO_END, stream=True)
        for _ in range(4)
    ]
    for stream in streams:
        next(iter(stream))
        stream.close()
    until(lambda: running() == 0, 10)
    assert gauges(tiny_server)['inazuma_requests_total{reason="cancelled"}'] == before + 4


def test_structured_outputs_and_tools_parse(client):
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 120}
    parsed = client.chat.completions.parse(**options, response_format=Weather)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(**options, response_format=Weather) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
    tool = openai.pydantic_function_tool(Weather, name="look_up")
    options = {"model": NAME, "messages": QUESTION, "max_tokens": 300, "parallel_tool_calls": False}
    called = client.chat.completions.parse(**options, tools=[tool], tool_choice="required")
    [call, *_] = called.choices[0].message.tool_calls
    assert call.function.name == "look_up" and isinstance(call.function.parsed_arguments, Weather)
    pieces = list(client.chat.completions.create(**options, tools=[tool], tool_choice="required", stream=True))
    said = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or () if call.index == 0]
    Weather.model_validate(json.loads("".join(call.function.arguments or "" for call in said)))


def test_responses(client):
    first = client.responses.create(model=NAME, input="hello", max_output_tokens=16)
    second = client.responses.create(
        model=NAME, input="again", previous_response_id=first.id, max_output_tokens=16, temperature=0
    )
    assert second.usage.input_tokens > first.usage.input_tokens
    events = list(client.responses.create(model=NAME, input="hello", max_output_tokens=16, stream=True))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    parsed = client.responses.parse(model=NAME, input="hello", text_format=Weather, max_output_tokens=120)
    assert isinstance(parsed.output_parsed, Weather)


def test_embeddings(client):
    answer = client.embeddings.create(model=NAME, input=["the capital of France", "Tokyo"])
    assert [math.hypot(*one.embedding) for one in answer.data] == pytest.approx([1, 1], abs=1e-5)


def test_each_error_has_its_class(client, tiny_server):
    def ask(**changes):
        return client.completions.create(**{"model": NAME, "prompt": "the", "max_tokens": 2} | changes)

    with pytest.raises(openai.NotFoundError) as error:
        ask(model="another")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.BadRequestError) as error:
        ask(extra_body={"colour": 1})
    assert error.value.code == "unknown_parameter" and error.value.param == "colour"
    with pytest.raises(openai.BadRequestError) as error:
        ask(prompt="the " * 5000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp-none")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(model=NAME, prompt="the", max_tokens=900)
    assert ask().choices[0].finish_reason in ("stop", "length")


def test_a_body_over_the_limit_is_told_so_and_not_reset(client):
    """The answer comes while the client still sends; a socket closed then would reset the connection under it."""
    with pytest.raises(openai.APIStatusError) as error:
        client.completions.create(model=NAME, prompt="x" * (20 << 20), max_tokens=2)
    assert error.value.status_code == 413 and error.value.code == "request_too_large"


def test_the_log_has_no_traceback(log):
    """Of the whole session until here."""
    assert "Traceback" not in log.read_text()
