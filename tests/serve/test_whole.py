"""A real model behind the real server, asked by the official client."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from inazuma.serve.background import serving
from inazuma.serve.loading import load_engine

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server(smollm2):
    loaded = load_engine(smollm2, quantize="none")
    with serving(smollm2, loaded.engine, "key") as url:
        yield url
    loaded.engine.close(0)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="key", max_retries=0)


def test_the_capital_of_france(client):
    text = client.completions.create(model="model", prompt="The capital of France is", max_tokens=5, temperature=0)
    assert text.choices[0].text.strip().startswith("Paris")
    answer = client.chat.completions.create(model="model", messages=QUESTION, temperature=0, max_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    chunks = client.chat.completions.create(
        model="model",
        messages=QUESTION,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    parts = list(chunks)
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == answer.choices[0].message.content
    assert parts[-1].usage.completion_tokens == answer.usage.completion_tokens


def test_a_seed_gives_its_text_in_any_company(client):
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model="model", messages=[{"role": "user", "content": "Tell a story."}], seed=seed, max_tokens=16
        )
        return answer.choices[0].message.content

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone
    assert len(set(alone)) == 4


def test_structured_output_and_tools(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99999999}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="model", messages=QUESTION, temperature=0, max_tokens=80,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}},
    )  # fmt: skip
    told = json.loads(answer.choices[0].message.content)
    assert set(told) == {"city", "people"} and isinstance(told["people"], int)
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    answer = client.chat.completions.create(
        model="model", messages=QUESTION, tools=[tool], tool_choice="required", temperature=0, max_tokens=120
    )
    [call, *_] = answer.choices[0].message.tool_calls
    assert call.function.name == "look_up" and set(json.loads(call.function.arguments)) == {"city", "people"}


def test_a_second_turn_is_cached(client):
    long = [{"role": "user", "content": "Remember this. " + "The cat sat on the mat. " * 60}]
    first = client.chat.completions.create(model="model", messages=long, temperature=0, max_tokens=20)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    turn = [*long, {"role": "assistant", "content": first.choices[0].message.content}, *QUESTION]
    second = client.chat.completions.create(model="model", messages=turn, temperature=0, max_tokens=5)
    assert second.usage.prompt_tokens_details.cached_tokens > 300


def test_many_at_once_and_some_leave(server):
    async def all_of_them():
        client = openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="key", max_retries=0)

        async def one(number: int):
            stream = await client.chat.completions.create(
                model="model", messages=QUESTION, seed=number, max_tokens=30, stream=True
            )
            async for _ in stream:
                if number % 3 == 0:
                    await stream.close()
                    return "left"
            return "answered"

        return await asyncio.gather(*(one(number) for number in range(24)))

    assert asyncio.run(all_of_them()).count("answered") == 16
