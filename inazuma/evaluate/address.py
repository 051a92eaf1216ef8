"""A model behind an address that speaks OpenAI's HTTP API.

Connections break, servers are busy and answer garbage. What may pass is tried again; what does not pass becomes the
reply's `error`, and so an infrastructure error of one item, never a wrong answer and never the end of the run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx2
from tokenizers import Tokenizer

from inazuma.errors import RunError, UserError
from inazuma.evaluate.answering import Reply
from inazuma.files import sha256

TRIES = 4
WAIT = 0.5
"""Seconds before the second try; doubled before each further one."""
LONGEST_WAIT = 60.0
TIMEOUT = 300.0
"""Seconds until a server must have answered."""
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
KEY = "OPENAI_API_KEY"


class AddressModel:
    """`url` is the API's base, such as http://localhost:8000/v1. The key, if any, is that in OPENAI_API_KEY."""

    at_once = 8
    batch_size = None
    positions = None

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        chat: bool = False,
        tokenizer: Path | None = None,
        timeout: float = TIMEOUT,
        wait: float = WAIT,
    ) -> None:
        """
        Args:
            name: of the model there; by default the only one that it has.
            chat: put each prompt as a message of a chat, not as the beginning of a text.
            tokenizer: the model's `tokenizer.json`, if at hand: without it nobody knows how long an answer must be.
        """
        self.url = url.rstrip("/")
        self.chat = chat
        self.wait = wait
        key = os.environ.get(KEY)
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx2.Limits(max_connections=self.at_once),
        )
        self.tokenizer_path = tokenizer
        self.tokenizer = None if tokenizer is None else _tokenizer(tokenizer)
        self.name = name or self._only_model()

    def facts(self) -> dict[str, Any]:
        """The address, the model's name there and how it is asked. What lies behind it nobody can check."""
        told = {"kind": "address", "url": self.url, "name": self.name, "chat": self.chat}
        return told if self.tokenizer_path is None else told | {"tokenizer": sha256(self.tokenizer_path)}

    def count(self, text: str) -> int | None:
        """Tokens of a text; None without a tokenizer."""
        return None if self.tokenizer is None else len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(self, prompt: str, *, max_tokens: int, stop: str | None, seed: int) -> Reply:
        """See `Answering.answer`. A chat is not stopped at `stop`: what it thinks aloud has several lines."""
        body: dict[str, Any] = {"model": self.name, "max_tokens": max_tokens, "temperature": 0, "seed": seed}
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body |= {"prompt": prompt} | ({"stop": [stop]} if stop else {})
        path = "/chat/completions" if self.chat else "/completions"
        wait = self.wait
        for tries in range(TRIES):
            try:
                response = self.client.post(self.url + path, json=body)
                if response.status_code == 200:
                    return self._reply(response.json())
                error = _reason(response)
                if response.status_code in (401, 403, 404):
                    raise UserError(f"{self.url}: {error}")
                if response.status_code not in _PASSING:
                    break
                asked = response.headers.get("retry-after", "")
                wait = max(wait, float(asked) if asked.isdigit() else 0.0)
            except httpx2.HTTPError as failure:
                error = f"{type(failure).__name__}: {failure}"
            except (ValueError, LookupError, TypeError) as failure:
                if isinstance(failure, UserError):
                    raise
                error = f"the server's answer is not what the API promises ({type(failure).__name__}: {failure})"
            if tries + 1 < TRIES:
                time.sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        return Reply(error=error)

    def _reply(self, body: dict[str, Any]) -> Reply:
        choice = body["choices"][0]
        usage = body.get("usage") or {}
        message = choice["message"] if self.chat else {}
        text = message.get("content") if self.chat else choice["text"]
        refused = bool(message.get("refusal")) or choice["finish_reason"] == "content_filter"
        if not isinstance(text, str) and not (text is None and self.chat):
            raise TypeError(f"a text of type {type(text).__name__}")
        if not isinstance(choice["finish_reason"], str):
            raise TypeError("no reason why the answer ended")
        return Reply(
            text=text or message.get("refusal") or "",
            stop_reason=choice["finish_reason"],
            prompt_tokens=usage.get("prompt_tokens"),
            generated_tokens=usage.get("completion_tokens"),
            refused=refused,
        )

    def _only_model(self) -> str:
        try:
            response = self.client.get(f"{self.url}/models")
            if response.status_code != 200:
                raise RunError(f"{self.url}: {_reason(response)}")
            found = [str(model["id"]) for model in response.json()["data"]]
        except httpx2.HTTPError as failure:
            raise RunError(f"{self.url}: {failure or type(failure).__name__}") from None
        except (ValueError, LookupError, TypeError):
            raise RunError(f"{self.url}/models: not what OpenAI's API answers; is this its address?") from None
        if len(found) != 1:
            raise UserError(f"{self.url} has {len(found)} models ({', '.join(found[:5])}); name one with --name")
        return found[0]


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{path}: not a tokenizer.json ({error})") from None


def _reason(response: httpx2.Response) -> str:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = response.text[:200] or response.reason_phrase
    return f"{message} ({response.status_code})"
