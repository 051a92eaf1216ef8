"""What is refused, and how it is said: OpenAI's bodies and status codes."""

from __future__ import annotations

import json

import pytest

from inazuma.serve.schemas import ChatBody, CompletionBody
from tests.serve.conftest import NAME, until

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"model": NAME, "prompt": "hi", "max_tokens": 2}


def told(response, status: int, code: str | None = None, param: str | None = None) -> str:
    """Checks an error's body; returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if code is not None:
        assert error["code"] == code
    if param is not None:
        assert error["param"] == param
    return error["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({"chat_template_kwargs": {"\udfff": 1}}, None),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "response_format"),
        ({"chat_template_kwargs": {"colour": 1}}, "chat_template_kwargs.colour"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"top_logprobs": 2}, None),
        ({"tool_choice": "required"}, None),
        ({"modalities": ["audio"]}, "modalities[0]"),
    ],
)
def test_bad_values_of_a_chat(live, change, param):
    told(live.post_text("/v1/chat/completions", json.dumps(CHAT | change)), 400, param=param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, None),
        ({"prompt": None}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3, "n": 2}, None),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
    ],
)
def test_bad_values_of_a_completion(live, change, param):
    told(live.post("/v1/completions", COMPLETION | change), 400, param=param)


@pytest.mark.parametrize("name", ["functions", "audio", "prediction", "web_search_options", "best_off", "Temperature"])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
def test_unknown_parameters_are_named(live, path, body, name):
    message = told(live.post(path, body | {name: 1}), 400, "unknown_parameter", name)
    assert name in message
    assert not live.engine.requests


def test_nested_unknown_parameters_are_named(live):
    body = CHAT | {"messages": [{"role": "user", "content": "x", "cache_control": {}}]}
    told(live.post("/v1/chat/completions", body), 400, "unknown_parameter", "messages[0].cache_control")


def test_missing_parameters_are_named(live):
    told(live.post("/v1/chat/completions", {"model": NAME}), 400, "missing_required_parameter", "messages")
    told(live.post("/v1/completions", {"prompt": "x"}), 400, "missing_required_parameter", "model")


@pytest.mark.parametrize("body", ["", "{", "[]", '"text"', "1", "null", "[" * 100_000, '{"a": NaN}', "\x00", "{}"])
def test_bodies_that_are_no_request(live, body):
    told(live.post_text("/v1/chat/completions", body), 400)


def test_bytes_that_are_no_text(live):
    told(live.post_text("/v1/chat/completions", b'{"model": "\xff"}'), 400)


def test_nan_is_no_temperature(live):
    told(live.post_text("/v1/completions", json.dumps(COMPLETION | {"temperature": float("nan")})), 400)


def test_only_json(live):
    with live.http() as http:
        told(http.post("/v1/completions", content=json.dumps(COMPLETION), headers={"content-type": "text/plain"}), 415)
        told(http.post("/v1/completions", data={"model": NAME}), 415)


def test_unknown_routes_methods_and_models(live):
    with live.http() as http:
        told(http.get("/v2/models"), 404)
        told(http.get("/v1/unknown"), 404)
        response = http.get("/v1/completions")
        told(response, 405)
        assert "POST" in response.headers["allow"]
        told(http.request("TRACE", "/v1/models"), 405)
        told(http.get("/v1/models/other"), 404, "model_not_found", "model")
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", COMPLETION),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        told(live.post(path, body | {"model": "gpt-6"}), 404, "model_not_found", "model")


def test_busy_is_429(live):
    live.engine.waiting = 0
    try:
        for stream in (False, True):
            response = live.post("/v1/completions", COMPLETION | {"stream": stream})
            told(response, 429, "server_busy")
            assert response.headers["retry-after"] == "2"
    finally:
        live.engine.waiting = 64


def test_failures_tell_nothing_of_the_inside(live):
    live.engine.fail = True
    response = live.post("/v1/chat/completions", CHAT)
    assert "secret" not in told(response, 500)
    with live.http() as http, http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as streamed:
        events = [line.removeprefix("data: ") for line in streamed.iter_lines() if line]
    assert streamed.status_code == 200 and events[-1] != "[DONE]"
    error = json.loads(events[-1])["error"]
    assert error["type"] == "server_error" and "secret" not in events[-1]
    live.engine.fail = False
    assert live.post("/v1/chat/completions", CHAT).status_code == 200


def test_a_grammar_that_is_none(live):
    for form in (
        {"guided_regex": "("},
        {"guided_grammar": "start: nothing"},
        {"guided_json": "{"},
        {"guided_json": {"type": "colour"}},
    ):
        told(live.post("/v1/completions", COMPLETION | form), 400)


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_not_computed_for(live, path, body, stream):
    live.engine.step_seconds = 0.02
    before = live.engine.counts["cancelled"]
    body = body | {"max_tokens": 500, "stream": stream, "logit_bias": {"0": -100, "301": -100}}
    with live.http() as http:
        if stream:
            with http.stream("POST", path, json=body) as response:
                next(response.iter_lines())
        else:
            import httpx2

            with pytest.raises(httpx2.ReadTimeout):
                http.post(path, json=body, timeout=0.3)
    until(lambda: live.engine.counts["cancelled"] == before + 1, 2)
    assert live.engine.counts["steps"] < 10_000


def test_openapi_says_what_is_taken(live):
    document = live.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    chat = document["components"]["schemas"]["ChatBody"]
    assert chat["additionalProperties"] is False
    assert set(chat["properties"]) == set(ChatBody.model_fields)
    assert chat["properties"]["model"]["enum"] == [NAME]
    assert set(document["components"]["schemas"]["CompletionBody"]["properties"]) == set(CompletionBody.model_fields)
    for path in document["paths"].values():
        for operation in path.values():
            assert "422" not in operation["responses"]
