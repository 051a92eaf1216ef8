"""OpenAI's own client for JavaScript, which `make node` installs where there are node and npm."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.clients.conftest import KEY
from tests.serve.conftest import NAME

SCRIPT, FOLDER = Path(__file__).with_name("ask.mjs"), Path(sys.prefix) / "node"
ERRORS = {
    "model": ("NotFoundError", 404, "model_not_found", "model"),
    "field": ("BadRequestError", 400, "unknown_parameter", "colour"),
    "type": ("BadRequestError", 400, "invalid_type", "max_tokens"),
    "long": ("BadRequestError", 400, "context_length_exceeded", None),
    "streamed": ("NotFoundError", 404, "model_not_found", "model"),
    "key": ("AuthenticationError", 401, "invalid_api_key", None),
    "response": ("NotFoundError", 404, "not_found", "response_id"),
}


@pytest.fixture(scope="module")
def found(tiny_server) -> dict:
    """What came of everything that ask.mjs asks."""
    node = shutil.which("node")
    if node is None or not (FOLDER / "node_modules/openai").is_dir():
        pytest.skip("OpenAI's client for JavaScript is not there; `make node` installs it, with node and npm")
    command = [node, str(SCRIPT), str(FOLDER), tiny_server, KEY, NAME, "0,301"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_weather(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"city", "degrees"} and value["city"] in ("Paris", "Tokyo") and value["degrees"] in (10, 20)


def test_models(found):
    assert found["models"] == {"listed": [NAME], "one": NAME}


def test_chat_whole_and_streamed(found):
    whole, streaming = found["chat"], found["streaming"]
    first, second = whole["choices"]
    text = first["message"]["content"]
    assert text and second["message"]["content"] == text and first["finish_reason"] == "length"
    chunks = streaming["chunks"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks[:-1]) == text
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 12
    assert whole["usage"]["completion_tokens"] == 24
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "".join(streaming["seen"]) == streaming["final"]["choices"][0]["message"]["content"] == text


def test_a_stream_can_be_left(found):
    assert found["leaving"] == {"read": 3, "aborted": True}


@pytest.mark.parametrize("way", ["whole", "streamed"])
def test_tools(found, way):
    choice = found["tools"][way]
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "look_up" and call["id"]
    assert is_weather(call["function"]["arguments"])


@pytest.mark.parametrize("way", ["whole", "streamed", "response"])
def test_structured_outputs(found, way):
    assert is_weather(found["structured"][way])


def test_responses(found):
    first, second, final = (found["responses"][name] for name in ("first", "second", "final"))
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert second["previous_response_id"] == first["id"]
    events = found["responses"]["events"]
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == final["output_text"] == first["output_text"] != ""


def test_embeddings(found):
    # The client asks for base64 and makes numbers of it.
    assert [math.hypot(*one["embedding"]) for one in found["embeddings"]] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("wrong", ERRORS)
def test_each_error_has_its_class_and_body(found, wrong):
    error = found["errors"][wrong]
    kind, status, code, param = ERRORS[wrong]
    assert (error["kind"], error["status"], error["code"], error["param"]) == (kind, status, code, param)
    assert set(error["body"]) == {"message", "type", "param", "code"} and error["body"]["message"]
