"""A conversation with a served model: what was said, how answers are asked for, and files of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from inazuma.errors import RunError, UserError
from inazuma.files import read_json, write_json

SETTINGS = {"temperature": float, "top_p": float, "top_k": int, "max_tokens": int, "seed": int}
"""What `/set` knows, and the type of each."""


@dataclass
class Answer:
    """What came of one question so far."""

    text: str = ""
    reasoning: str = ""
    stopped: bool = False
    tokens: int = 0
    context: int = 0
    """Tokens of the conversation with this answer."""
    first_s: float = 0.0
    total_s: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens a second after the first."""
        writing = self.total_s - self.first_s
        return (self.tokens - 1) / writing if self.tokens > 1 and writing > 0 else 0.0


@dataclass
class Conversation:
    """Messages and settings, with a server that speaks OpenAI's API."""

    url: str
    model: str
    key: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def ask(self, question: str) -> Iterator[Answer]:
        """Yields the growing answer; both become part of the conversation when it ends, or is closed early.

        Closing the iterator closes the connection, at which the server stops working.

        Raises:
            RunError: the server refuses or is gone; the conversation is as it was.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        answer, started = Answer(), time.monotonic()
        body = {"model": self.model, "messages": asked, "stream": True, "stream_options": {"include_usage": True}}
        try:
            for event in self._stream(body | self.settings):
                if usage := event.get("usage"):
                    answer.tokens, answer.context = usage["completion_tokens"], usage["total_tokens"]
                for choice in event.get("choices", ()):
                    delta = choice["delta"]
                    answer.text += delta.get("content") or ""
                    answer.reasoning += delta.get("reasoning_content") or ""
                if (answer.text or answer.reasoning) and not answer.first_s:
                    answer.first_s = time.monotonic() - started
                answer.total_s = time.monotonic() - started
                yield answer
        except (GeneratorExit, KeyboardInterrupt):
            answer.stopped = True
            raise
        finally:
            if answer.text or answer.tokens:
                self.messages = [*asked, {"role": "assistant", "content": answer.text}]

    def _stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with (
            _told(self.url),
            _client(self.url, self.key) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise RunError(_reason(response))
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RunError(event["error"]["message"])
                yield event

    def take_back(self) -> str | None:
        """Removes the last question and its answer; the question, if there was one."""
        while self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if self.messages and self.messages[-1]["role"] == "user":
            return self.messages.pop()["content"]
        return None

    def set_system(self, text: str) -> None:
        """Makes `text` the system message; an empty one removes it."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def set(self, name: str, value: str) -> None:
        """
        Raises:
            UserError: an unknown setting, or a value that is none.
        """
        if name not in SETTINGS:
            raise UserError(f"/set: {name!r} is not known, only {', '.join(SETTINGS)}")
        try:
            self.settings[name] = SETTINGS[name](value)
        except ValueError:
            raise UserError(f"/set {name}: {value!r} is not a number") from None

    def save(self, path: Path, *, force: bool = False) -> None:
        """
        Raises:
            UserError: the file exists, without `force`.
        """
        if path.exists() and not force:
            raise UserError(f"{path}: exists; /save! {path} overwrites it")
        write_json(path, {"model": self.model, "settings": self.settings, "messages": self.messages})

    def load(self, path: Path) -> None:
        """
        Raises:
            UserError: no such file, or one that is no conversation; this one is as it was.
        """
        found = read_json(path)
        found = found if isinstance(found, dict) else {}
        messages, settings = found.get("messages"), found.get("settings") or {}
        right = (
            isinstance(messages, list)
            and isinstance(settings, dict)
            and all(isinstance(message, dict) for message in messages)
            and all(isinstance(message.get(name), str) for message in messages for name in ("role", "content"))
        )
        if not right:
            raise UserError(f"{path}: is no saved conversation")
        self.settings = {name: settings[name] for name in SETTINGS if name in settings}
        # Others' files may say more of a message than the API takes.
        self.messages = [{name: message[name] for name in ("role", "content")} for message in messages]


def models(url: str, key: str | None) -> list[dict[str, Any]]:
    """The models a server has.

    Raises:
        RunError: it is not there, or refuses.
    """
    with _told(url), _client(url, key) as client:
        response = client.get("/v1/models")
        if response.status_code != 200:
            raise RunError(_reason(response))
        return response.json()["data"]


def _client(url: str, key: str | None) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(base_url=url, headers=headers, timeout=httpx2.Timeout(30.0, read=None), trust_env=False)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Where the connection fails, one line that says so."""
    try:
        yield
    except httpx2.HTTPError as error:
        raise RunError(f"{url}: {error or type(error).__name__}") from None


def _reason(response: httpx2.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200] or response.reason_phrase
    wait = response.headers.get("retry-after")
    return f"{message} ({response.status_code}{f', again in {wait} s' if wait else ''})"
