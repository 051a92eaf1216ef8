"""A server that is busy, slow, silent, confused, and gone: nothing is lost, and no failure is a wrong answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inazuma import cli
from inazuma.errors import RunError, UserError
from inazuma.evaluate import address
from inazuma.evaluate.address import AddressModel
from inazuma.evaluate.evaluate import Settings, evaluate
from inazuma.evaluate.outcome import read_samples
from inazuma.evaluate.tasks import make_tasks
from inazuma.runs import verify

SETTINGS = Settings(tasks=("counting",), lengths=(512,), items=12)
WITNESS = {item.prompt: item.witness for item in make_tasks(["counting"], lengths=[512], count=12)[0].items(0)}


@dataclass
class Server:
    """`answer(number, body)` gives (status, bytes, headers) for the so-maniest request, or None to hang up."""

    answer: Callable[[int, dict[str, Any]], tuple[int, bytes, dict[str, str]] | None]
    models: tuple[str, ...] = ("tiny",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""


def completion(body: dict[str, Any], text: str, reason: str = "stop") -> tuple[int, bytes, dict[str, str]]:
    choice: dict[str, Any] = {"finish_reason": reason}
    choice |= {"message": {"content": text}} if "messages" in body else {"text": text}
    said = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    return 200, json.dumps(said).encode(), {}


def right(body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
    return completion(body, WITNESS[prompt])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(answer: Callable, **options: Any) -> Server:
        server = Server(answer, **options)
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.reply(200, json.dumps({"data": [{"id": name} for name in server.models]}).encode(), {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.paths.append(self.path)
                    number = len(server.bodies)
                found = server.answer(number, body)
                if found is None:
                    self.close_connection = True
                else:
                    self.reply(*found)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        servers.append(http)
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        return server

    yield start
    for http in servers:
        http.shutdown()
        http.server_close()


def model_at(server: Server, **options: Any) -> AddressModel:
    return AddressModel(server.url, timeout=5.0, wait=0.001, **options)


@pytest.mark.parametrize("chat", [False, True])
def test_an_address_as_a_person_evaluates_it(serve, tmp_path: Path, chat: bool) -> None:
    server = serve(lambda number, body: right(body))
    options = ["--tasks", "counting", "--lengths", "512", "--items", "12", "--out", str(tmp_path / "run")]
    assert cli.main(["eval", server.url, *options, *["--chat"] * chat]) == 0
    assert set(server.paths) == {"/v1/chat/completions" if chat else "/v1/completions"}
    assert all(body["temperature"] == 0 and body["model"] == "tiny" for body in server.bodies)
    samples = read_samples(tmp_path / "run")
    assert {(one.outcome, one.prompt_tokens, one.generated_tokens) for one in samples} == {("correct", 7, 2)}
    assert {one.min_answer_tokens for one in samples} == {None}  # nobody knows the tokenizer
    assert [check.name for check in verify(tmp_path / "run") if not check.ok] == []


FAILURES = {
    "busy": lambda body: (429, b'{"error": {"message": "busy"}}', {"Retry-After": "0"}),
    "broken": lambda body: (500, b"oops", {}),
    "hangs up": lambda body: None,
    "garbage": lambda body: (200, b"\xff<html>", {}),
    "another API": lambda body: (200, b'{"choices": []}', {}),
    "no text": lambda body: (200, b'{"choices": [{"text": null, "finish_reason": "stop"}]}', {}),
    "no reason": lambda body: (200, b'{"choices": [{"text": "4", "finish_reason": null}]}', {}),
    "half": lambda body: (200, b'{"choices": [{"te', {}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_what_passes_is_tried_again_and_what_stays_is_typed(serve, tmp_path: Path, failure: str) -> None:
    poor = list(WITNESS)[:2]
    tries: dict[str, int] = {}

    def answer(number: int, body: dict[str, Any]):
        prompt = body["prompt"]
        tries[prompt] = tries.get(prompt, 0) + 1
        # The first prompt never gets through, the second at the third try.
        if prompt == poor[0] or (prompt == poor[1] and tries[prompt] < 3):
            return FAILURES[failure](body)
        return right(body)

    server = serve(answer)
    with pytest.raises(RunError, match=r"1 of 12 items met infrastructure errors.* the same command asks only for"):
        evaluate(model_at(server), SETTINGS, tmp_path / "run")
    samples = {one.prompt: one for one in read_samples(tmp_path / "run")}
    assert samples[poor[0]].outcome == "infrastructure_error" and samples[poor[0]].score is None
    assert samples[poor[0]].error and tries[poor[0]] == address.TRIES
    assert [one.outcome for prompt, one in samples.items() if prompt != poor[0]] == ["correct"] * 11
    score = json.loads((tmp_path / "run/result.json").read_text())["tasks"]["counting-512"]
    assert (score["n"], score["as_scored"]) == (11, 1.0)


def test_a_server_that_dies_midway_and_comes_back(serve, tmp_path: Path) -> None:
    dead = True
    server = serve(lambda number, body: None if dead and number > 5 else right(body))
    with pytest.raises(RunError, match="met infrastructure errors"):
        evaluate(model_at(server), SETTINGS, tmp_path / "run")
    lost = sum(one.outcome == "infrastructure_error" for one in read_samples(tmp_path / "run"))
    assert 0 < lost < 12
    dead, server.bodies[:] = False, []
    evaluate(model_at(server), SETTINGS, tmp_path / "run")
    assert len(server.bodies) == lost
    whole = serve(lambda number, body: right(body))
    evaluate(model_at(whole), SETTINGS, tmp_path / "whole")
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
    assert [check.name for check in verify(tmp_path / "run") if not check.ok] == []


def test_a_timeout_is_an_infrastructure_error(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "TRIES", 2)
    done = threading.Event()
    server = serve(lambda number, body: done.wait(5) and None)
    model = AddressModel(server.url, timeout=0.2, wait=0.001)
    reply = model.answer("hello", max_tokens=1, stop=None, seed=0)
    done.set()
    assert reply.text is None and "ReadTimeout" in reply.error


def test_refusals_and_limits_are_told_apart(serve) -> None:
    kinds = iter(["content_filter", "length"])
    model = model_at(serve(lambda number, body: completion(body, "", next(kinds))), chat=True)
    assert model.answer("a", max_tokens=1, stop=None, seed=0).refused
    assert model.answer("b", max_tokens=1, stop=None, seed=0).stop_reason == "length"


def test_mistakes_are_named(serve, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 models \(a, b\); name one with --name"):
        model_at(serve(lambda number, body: right(body), models=("a", "b")))
    model = model_at(serve(lambda number, body: (401, b'{"error": {"message": "no key"}}', {})))
    with pytest.raises(UserError, match=r"no key \(401\)"):
        evaluate(model, SETTINGS, tmp_path / "run")
    with pytest.raises(RunError, match=r"ConnectError|refused|Connection"):
        AddressModel("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        AddressModel("http://127.0.0.1:9/v1", name="x", tokenizer=tmp_path / "none.json")
    assert cli.main(["eval", str(tmp_path), "--chat", "--out", str(tmp_path / "other")]) == 2
