"""The process around the API: loading, stopping, and the small endpoints."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest
import torch

from inazuma.cli import main
from inazuma.serve.security import Security
from inazuma.serve.server import Server, address, listen
from inazuma.serve.service import Service
from tests.serve.conftest import NAME, serving, until
from tests.serve.test_errors import COMPLETION, told


def test_health_while_loading_and_after_failing():
    service = Service()
    server = Server(service, Security())
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    go_on = threading.Event()

    def load():
        go_on.wait(10)
        raise RuntimeError("no such weights")

    raised = []

    def run():
        try:
            server.serve_on(listener, load, lambda: None)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: server.started)
    response = httpx2.get(f"{url}/health", trust_env=False)
    assert response.status_code == 503 and response.json() == {"status": "loading"}
    response = httpx2.post(f"{url}/v1/completions", json=COMPLETION, trust_env=False)
    told(response, 503, "loading")
    assert "retry-after" in response.headers
    assert httpx2.get(f"{url}/metrics", trust_env=False).status_code == 200
    go_on.set()
    thread.join(10)
    assert [str(error) for error in raised] == ["no such weights"]


def test_stopping_lets_short_answers_end_and_tells_the_long_ones(folder):
    with serving(folder) as live:
        live.engine.step_seconds = 0.02
        told_by: dict[int, list[str]] = {10: [], 900: []}

        def ask(tokens: int) -> None:
            body = COMPLETION | {"max_tokens": tokens, "stream": True, "logit_bias": {"0": -100, "301": -100}}
            with live.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
                for line in response.iter_lines():
                    told_by[tokens] += [line] if line else []

        threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in (10, 900)]
        for number, thread in enumerate(threads, start=1):
            thread.start()
            until(lambda number=number: len(live.engine.requests) == number)
        until(lambda: told_by[10])  # a busy machine takes its time to begin
        started = time.monotonic()
        live.server.should_exit = True
        for thread in threads:
            thread.join(10)
    assert told_by[10][-1] == "data: [DONE]"
    assert json.loads(told_by[900][-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert 0.4 < time.monotonic() - started < 3, "half a second of grace"
    with pytest.raises(httpx2.ConnectError):
        live.get("/health")


PROGRAM = """
import sys, time, types
loading = types.ModuleType("inazuma.serve.loading")
def load_engine(path, **options):
    import inazuma
    from tests.serve.stand_in import StandIn
    progress = options.pop("progress")
    progress(1, 4)
    assert options == dict(
        context=99, quantize="none", memory=None, cache_memory=2_000_000_000, cache_format="fp8"
    )
    engine = StandIn(inazuma.load(path))
    engine.step_seconds = 0.05
    progress(3, 4)
    time.sleep(0.5)
    return types.SimpleNamespace(engine=engine, notes=["weights of nothing"])
loading.load_engine = load_engine
sys.modules["inazuma.serve.loading"] = loading
from inazuma.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_serves_until_it_is_told_to_stop(folder):
    arguments = ["serve", folder, "--port", "0", "--context", "99", "--quantize", "none", "--cache-memory", "2GB"]
    arguments += ["--cache-format", "fp8", "--name", "a/b", "--grace", "30", "--api-key", "k"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80"},
    )
    try:
        assert process.stdout.readline() == "weights of nothing\n", process.stderr.read()
        line = process.stdout.readline()
        assert line.startswith("a/b is served at http://127.0.0.1:"), process.stderr.read()
        client = openai.OpenAI(base_url=f"{line.split()[-1]}/v1", api_key="k", max_retries=0)
        options = {"model": "a/b", "prompt": "the", "temperature": 0, "logit_bias": {"0": -100, "301": -100}}
        assert client.completions.create(**options, max_tokens=3).usage.completion_tokens == 3
        stream = client.completions.create(**options, max_tokens=200, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the answer that runs is waited for"
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130, "the second signal ends it"
        logged = process.stderr.read()
        assert "loading" in logged and "75%" in logged, "a bar, where standard error is a terminal"
        assert "POST /v1/completions 200 2+3 tokens" in logged and "Traceback" not in logged
    finally:
        process.kill()


def test_models(live, client):
    [model] = client.models.list().data
    assert model.id == NAME == client.models.retrieve(NAME).id
    assert model.model_extra["max_model_len"] == live.engine.context


def test_embeddings(live, client):
    texts = ["the capital of France", "Tokyo"]
    answer = client.embeddings.create(model=NAME, input=texts, encoding_format="float")
    for data, text in zip(answer.data, texts, strict=True):
        with torch.inference_mode():
            hidden, _, _ = live.engine.model.read(torch.tensor([live.ids(text)]))
        mean = hidden[0].mean(0)
        assert data.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(live.ids(text)) for text in texts)
    # The client's default is base64, which it decodes.
    assert client.embeddings.create(model=NAME, input=texts[0]).data[0].embedding == answer.data[0].embedding
    raw = live.post("/v1/embeddings", {"model": NAME, "input": [live.ids("Tokyo")], "encoding_format": "base64"}).json()
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == answer.data[1].embedding
    assert len(client.embeddings.create(model=NAME, input="x", dimensions=40).data[0].embedding) == 40
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=NAME, input="x", dimensions=8)
    assert error.value.param == "dimensions"


def test_tokenize_and_back(live):
    text = "the capital: 東京 <|im_end|>"
    answer = live.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == live.ids(text) and answer["count"] == len(answer["tokens"])
    assert live.tokenizer.token_to_id("<|im_end|>") not in answer["tokens"], "a text's special tokens are text"
    assert "".join(answer["token_strs"][:3]) == text[: len("".join(answer["token_strs"][:3]))]
    assert live.post("/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": text}
    chat = live.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    assert live.post("/detokenize", {"tokens": chat["tokens"]}).json()["prompt"] == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    told(live.post("/detokenize", {"tokens": [9999]}), 400, param="tokens")
    told(live.post("/tokenize", {}), 400)


def test_selection_is_the_indexers(live):
    text = "the capital of France is Paris; the capital of Japan is Tokyo"
    ids = live.ids(text)
    position = len(ids) - 3
    answer = live.post("/inazuma/selection", {"model": NAME, "prompt": text, "position": position}).json()
    seen = []
    with torch.inference_mode():
        live.engine.model(torch.tensor([ids]), observe=seen.append)
    expected = [[i for i in layer.result.indices[0, position].tolist() if i >= 0] for layer in seen]
    assert answer["layers"] == expected and answer["position"] == position
    assert "".join(token["text"] for token in answer["tokens"]) == text
    assert answer["counts"] == [sum(i in layer for layer in expected) for i in range(position + 1)]
    told(live.post("/inazuma/selection", {"prompt": text, "position": len(ids)}), 400, param="position")
    assert len(live.post("/inazuma/selection", {"messages": [{"role": "user", "content": "x"}]}).json()["layers"]) == 3


def test_the_page(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("inazuma.serve.app.PAGE", tmp_path)
    (tmp_path / "index.html").write_text("<title>page</title>")
    (tmp_path / "app.js").write_text("1")
    with serving(folder, Security(keys=("k",), loopback=False)) as live:
        page = live.get("/?status_code=500")
        assert page.status_code == 200 and page.text == "<title>page</title>"
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert "javascript" in live.get("/app.js").headers["content-type"]
        assert live.get("/index.html", headers={"Authorization": "Bearer k"}).status_code == 404


def test_metrics_count(folder):
    with serving(folder) as live:
        live.client().completions.create(model=NAME, prompt="the", max_tokens=5, temperature=0)
        live.get("/v1/models/none")
        text = live.get("/metrics").text
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert values["inazuma_new_tokens_total"] == 5
    assert values["inazuma_prompt_tokens_total"] == len(live.ids("the"))
    assert values['inazuma_requests_total{reason="length"}'] == 1
    assert values["inazuma_time_to_first_token_seconds_count"] == 1
    assert values["inazuma_time_per_output_token_seconds_count"] == 1
    assert values['inazuma_http_requests_total{method="POST",path="/v1/completions",status="200"}'] == 1
    assert values['inazuma_http_requests_total{method="GET",path="/v1/models/{model:path}",status="404"}'] == 1
    assert values["inazuma_cache_usage_ratio"] == 0
    assert values["process_resident_memory_bytes"] > 10e6


def test_the_command_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("INAZUMA_API_KEY", raising=False)
    model = tmp_path / "m"
    model.mkdir()
    for arguments, said in (
        (["none"], "no such model folder"),
        ([str(model), "--host", "0.0.0.0"], "--api-key"),
        ([str(model), "--host", "192.168.0.1"], "--api-key"),
        ([str(model), "--rate-limit", "many"], "--rate-limit many"),
        ([str(model), "--allow-origin", "page.example"], "--allow-origin page.example"),
        ([str(model), "--port", "70000"], "--port 70000"),
        ([str(model), "--api-key", "a b"], "--api-key"),
        ([str(model), "--cache-memory", "lots"], "--cache-memory lots"),
    ):
        assert main(["serve", *arguments]) == 2
        assert said in capsys.readouterr().err
