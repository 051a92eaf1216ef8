"""Simon Willison's `llm`, told of the server by extra-openai-models.yaml, as its documentation says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml


@pytest.fixture
def llm(smollm2_server, tmp_path):
    model = {
        "model_id": "local",
        "model_name": "model",
        "api_base": f"{smollm2_server}/v1",
        "api_key_name": "local",
        "supports_schema": True,
    }
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([model]))
    (tmp_path / "keys.json").write_text(json.dumps({"local": "none"}))
    # No plugin: SmolLM2's package is one, and would bring a server of its own.
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_it_asks_goes_on_and_keeps_to_a_schema(llm):
    exact = ["-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "20"]
    assert "Paris" in llm(*exact, "What is the capital of France?")
    again = llm("-c", *exact, "And of Japan?")
    assert again.strip()
    [first, second] = json.loads(llm("logs", "--json", "-n", "2"))
    assert first["response"] and second["input_tokens"] > first["input_tokens"] > 0, "the second turn has the first"
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    options = ["-m", "local", "--no-stream", "-o", "temperature", "0", "--schema", json.dumps(schema)]
    assert json.loads(llm(*options, "What is the capital of France?"))["city"] in ("Paris", "Rome")
