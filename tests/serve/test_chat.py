"""`/v1/chat/completions`, asked by OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.serve.conftest import CHATML, NAME, THINKING, make_folder, serving

USER = [{"role": "user", "content": "the capital of Japan?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Tokyo"}}\n</tool_call>'
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Tokyo", "Paris"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]


@pytest.fixture(scope="module")
def thinking(tmp_path_factory):
    with serving(make_folder(tmp_path_factory.mktemp("thinking") / "m", THINKING)) as live:
        yield live


def test_prompt_is_the_templates(live, client):
    live.says("It is Tokyo.")
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    answer = client.chat.completions.create(model=NAME, messages=messages, temperature=0)
    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe capital of Japan?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    [request] = live.engine.requests
    assert live.tokenizer.decode(request.prompt, skip_special_tokens=False) == prompt
    [choice] = answer.choices
    assert choice.message.content == "It is Tokyo." and choice.finish_reason == "stop"
    assert choice.message.role == "assistant" and choice.message.tool_calls is None
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.completion_tokens == len(live.engine.say)


def test_answer_may_fill_the_context_and_no_more(live, client):
    live.engine.context = 96
    endless = {"0": -100, "301": -100}
    answer = client.chat.completions.create(model=NAME, messages=USER, temperature=0, logit_bias=endless)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == live.engine.context
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=USER, max_tokens=live.engine.context)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "Paris " * 100}])
    assert error.value.code == "context_length_exceeded"


def test_stream_adds_up(live, client):
    options = {"model": NAME, "messages": USER, "max_tokens": 30, "seed": 11, "n": 2}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    texts, logprobs, usage = ["", ""], [[], []], None
    stream = client.chat.completions.create(
        **options, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    assert usage == whole.usage.model_copy(update={"prompt_tokens_details": usage.prompt_tokens_details})


def test_stream_helper_and_async_client(live):
    live.says("It is Tokyo.")

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            async with client.chat.completions.stream(model=NAME, messages=USER, temperature=0) as stream:
                text = "".join([event.delta async for event in stream if event.type == "content.delta"])
                final = await stream.get_final_completion()
            assert final.choices[0].message.content == text
            return text

    assert asyncio.run(ask()) == "It is Tokyo."


def test_logprobs_are_of_the_shown_tokens(live, client):
    live.says("Tōkyō")
    answer = client.chat.completions.create(model=NAME, messages=USER, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    # A character of two bytes may be two tokens: their bytes are whole together.
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "Tōkyō"
    assert all(len(entry.top_logprobs) == 3 and entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    plain = client.chat.completions.create(model=NAME, messages=USER, temperature=0)
    assert plain.choices[0].logprobs is None


class City(BaseModel):
    name: Literal["Tokyo", "Paris"]
    capital: bool


def test_parse_and_json_object(live, client):
    answer = client.chat.completions.parse(model=NAME, messages=USER, response_format=City, seed=2)
    assert isinstance(answer.choices[0].message.parsed, City)
    live.says('{"a": 1}')
    answer = client.chat.completions.create(
        model=NAME, messages=USER, temperature=0, response_format={"type": "json_object"}
    )
    assert json.loads(answer.choices[0].message.content) == {"a": 1}


def test_a_call_the_model_chose(live, client):
    live.says(f"I ask. {CALL}")
    options = {"model": NAME, "messages": USER, "temperature": 0, "tools": TOOLS}
    [choice] = client.chat.completions.create(**options).choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I ask."
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Tokyo"}
    with client.chat.completions.stream(**options) as stream:
        [streamed] = stream.get_final_completion().choices
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.finish_reason == "tool_calls" and streamed.message.content == "I ask."
    offered = live.tokenizer.decode(live.engine.requests[0].prompt)
    assert '"name": "weather"' in offered
    [plain] = client.chat.completions.create(**options, tool_choice="none").choices
    assert plain.message.tool_calls is None and plain.message.content == f"I ask. {CALL}"
    assert '"name": "weather"' not in live.tokenizer.decode(live.engine.requests[-1].prompt)


GLM = CHATML + (
    "{% if tools %}{{ tools | tojson }}"
    "<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>{% endif %}"
)


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        ('{"x": "y}', {"place": '{"x": "y}'}),
        ('{"x": "y"}', {"place": {"x": "y"}}),
        ('{"x": "</arg_value>"}', {"place": {"x": "</arg_value>"}}),
    ],
)
def test_a_call_in_tags_has_arguments_in_json_whatever_it_holds(tmp_path, value, arguments):
    tool = TOOLS[0]["function"] | {"parameters": {"type": "object", "properties": {"place": {"type": "object"}}}}
    text = f"<tool_call>weather<arg_key>place</arg_key><arg_value>{value}</arg_value></tool_call>"
    with serving(make_folder(tmp_path / "m", GLM)) as live:
        live.says(text)
        options = {
            "model": NAME,
            "messages": USER,
            "temperature": 0,
            "tools": [{"type": "function", "function": tool}],
        }
        [whole] = live.client().chat.completions.create(**options).choices
        with live.client().chat.completions.stream(**options) as stream:
            [streamed] = stream.get_final_completion().choices
        # Cut off within the value.
        short = live.client().chat.completions.create(**options, max_tokens=len(live.ids(text)) - 20).choices[0]
    for choice in (whole, streamed):
        [call] = choice.message.tool_calls
        assert json.loads(call.function.arguments) == arguments
        assert choice.finish_reason == "tool_calls" and not choice.message.content
    assert short.finish_reason == "length" and not short.message.content
    assert short.message.tool_calls[0].function.arguments.startswith('{"place": {"x": "')


def test_special_tokens_that_are_no_markers_are_not_shown(live, client):
    live.engine.say = [*live.ids("yes"), live.tokenizer.token_to_id("<|im_start|>"), *live.ids(" no"), 0]
    answer = client.chat.completions.create(model=NAME, messages=USER, tools=TOOLS, temperature=0)
    assert answer.choices[0].message.content == "yes no"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_a_call_that_must_be(live, client, choice):
    answer = client.chat.completions.create(
        model=NAME, messages=USER, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=1
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name in ({"weather", "time"} if choice == "required" else {"time"})
    assert json.loads(call.function.arguments)["city"] in ("Tokyo", "Paris")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_one_call_where_parallel_ones_are_not_wanted(live, client):
    live.says(CALL + CALL)
    options = {"model": NAME, "messages": USER, "temperature": 0, "tools": TOOLS}
    both = client.chat.completions.create(**options).choices[0].message.tool_calls
    one = client.chat.completions.create(**options, parallel_tool_calls=False).choices[0]
    assert len(both) == 2 and len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"


def test_a_form_or_a_call(live, client):
    """A schema for the text, and tools: the model may do either."""
    live.says(CALL)
    options = {"model": NAME, "messages": USER, "tools": TOOLS, "response_format": City, "temperature": 0}
    tools = [tool | {"function": tool["function"] | {"strict": True}} for tool in TOOLS]
    called = client.chat.completions.parse(**options | {"tools": tools})
    assert called.choices[0].message.tool_calls[0].function.name == "weather"
    live.says('{"name": "Tokyo", "capital": true}')
    said = client.chat.completions.parse(**options | {"tools": tools})
    assert said.choices[0].message.parsed == City(name="Tokyo", capital=True)


def test_a_conversation_with_calls_comes_back(live, client):
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Tokyo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    live.says("Sunny.")
    answer = client.chat.completions.create(model=NAME, messages=messages, tools=TOOLS, temperature=0)
    assert answer.choices[0].message.content == "Sunny."
    prompt = live.tokenizer.decode(live.engine.requests[-1].prompt)
    assert '"city": "Tokyo"' in prompt and "sunny" in prompt
    # What the client's library gives for an answer can be sent back as it is.
    echo = [*messages, answer.choices[0].message.model_dump(), *USER]
    client.chat.completions.create(model=NAME, messages=echo, max_tokens=1)


def test_reasoning_is_apart(thinking):
    thinking.says("<think>\nhm, hm\n</think>\n\nIt is Tokyo.")
    client = thinking.client()
    options = {"model": NAME, "messages": USER, "temperature": 0}
    message = client.chat.completions.create(**options).choices[0].message
    assert message.content == "It is Tokyo."
    assert message.reasoning_content == message.reasoning == "hm, hm"
    content = reasoning = ""
    for chunk in client.chat.completions.create(**options, stream=True):
        content += chunk.choices[0].delta.content or ""
        reasoning += (chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "")
    assert (content, reasoning) == ("It is Tokyo.", "hm, hm")


@pytest.mark.parametrize(
    ("option", "thinks"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, False),
    ],
)
def test_thinking_can_be_turned_off(thinking, option, thinks):
    thinking.client().chat.completions.create(model=NAME, messages=USER, max_tokens=1, **option)
    prompt = thinking.tokenizer.decode(thinking.engine.requests[-1].prompt)
    assert prompt.endswith("</think>") != thinks


def test_continuing_the_last_message(live):
    live.engine.say = [*live.ids("kyo."), 0]
    messages = [*USER, {"role": "assistant", "content": "It is To"}]
    body = {"model": NAME, "messages": messages, "temperature": 0, "continue_final_message": True}
    answer = live.post("/v1/chat/completions", body | {"add_generation_prompt": False}).json()
    assert answer["choices"][0]["message"]["content"] == "kyo."
    prompt = live.tokenizer.decode(live.engine.requests[-1].prompt, skip_special_tokens=False)
    assert prompt.endswith("<|im_start|>assistant\nIt is To")


def test_harmless_fields_are_taken(live, client):
    client.chat.completions.create(
        model=NAME,
        messages=USER,
        max_completion_tokens=1,
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        modalities=["text"],
    )


def test_a_base_model_takes_messages_as_text(tmp_path):
    with serving(make_folder(tmp_path / "m", None)) as live:
        live.client().chat.completions.create(model=NAME, messages=USER, max_tokens=1)
        assert live.tokenizer.decode(live.engine.requests[-1].prompt) == USER[0]["content"]


def test_generation_config_gives_the_defaults(tmp_path):
    folder = make_folder(tmp_path / "m", CHATML)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.25, "top_k": 3, "max_new_tokens": 2}))
    with serving(folder) as live:
        client = live.client()
        answer = client.chat.completions.create(model=NAME, messages=USER)
        assert answer.usage.completion_tokens <= 2
        client.chat.completions.create(model=NAME, messages=USER, temperature=1, max_tokens=1)
        told = [(request.sampling.temperature, request.sampling.top_k) for request in live.engine.requests]
        assert told == [(0.25, 3), (1.0, 3)]
