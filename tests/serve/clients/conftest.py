"""`inazuma serve` in a process of its own, as its users start it, for other people's clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from inazuma.bench.serve import inazuma_server
from tests.serve.conftest import NAME

KEY = "sk-tried"


@pytest.fixture(scope="session")
def log(tmp_path_factory) -> Path:
    """What the tiny model's server writes to standard error."""
    return tmp_path_factory.mktemp("log") / "serve.log"


@pytest.fixture(scope="session")
def tiny_server(folder, log) -> Iterator[str]:
    """The address of a tiny model of random weights, named `NAME`, behind the key `KEY`."""
    with log.open("w") as file, inazuma_server(folder, "--name", NAME, "--api-key", KEY, log=file) as url:
        yield url


@pytest.fixture(scope="session")
def smollm2_server(smollm2) -> Iterator[str]:
    """The address of SmolLM2, named `model`, for everyone."""
    with inazuma_server(smollm2, "--quantize", "none") as url:
        yield url


@pytest.fixture
def client(tiny_server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server}/v1", api_key=KEY, max_retries=0) as client:
        yield client
