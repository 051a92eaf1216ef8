"""What the endpoints share: the model once it is loaded, and a call with what it needs of it."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from inazuma.serve.errors import APIError
from inazuma.serve.metrics import Metrics
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.response_items import Store
from inazuma.serve.running import Gone, Run, while_connected
from inazuma.serve.security import Record
from inazuma.serve.served import Served

log = logging.getLogger("inazuma.serve")

AT_ONCE = 16
"""Requests to the engine that one call has there at a time: a long list of prompts must not fill the queue."""


class Service:
    """The state of a server: a model that is there, is not yet, or will not come."""

    def __init__(self, served: Served | None = None, *, log_prompts: bool = False):
        self.served = served
        self.failure: BaseException | None = None
        self.stopping = False
        self.log_prompts = log_prompts
        self.metrics = Metrics(lambda: self.served.engine.metrics() if self.served else {})
        self.responses = Store()
        self.started = int(time.time())

    @property
    def status(self) -> str:
        """ "ready", or why it is not."""
        if self.stopping:
            return "stopping"
        if self.failure is not None:
            return "failed"
        return "loading" if self.served is None else "ready"

    def ready(self) -> Served:
        """The model.

        Raises:
            APIError: 503 while it loads or the server stops.
        """
        if self.status != "ready":
            messages = {"loading": "the model is loading", "stopping": "the server is shutting down"}
            message = messages.get(self.status, "the model could not be loaded")
            raise APIError(503, message, code=self.status, headers={"Retry-After": "1"})
        return self.served

    def named(self, name: str | None) -> Served:
        """The model of this name; None takes the one there is.

        Raises:
            APIError: 404.
        """
        served = self.ready()
        if name is not None and name != served.name:
            message = f"the model {name!r} does not exist; this server has {served.name!r}"
            raise APIError(404, message, param="model", code="model_not_found")
        return served


class Call:
    """One HTTP request that uses the model."""

    def __init__(self, request: Request, model: str | None):
        self.service: Service = request.app.state.service
        self.served = self.service.named(model)
        self.record: Record = request.scope["record"]
        self.receive = request.receive
        self.created = int(time.time())
        self.slot = asyncio.Semaphore(AT_ONCE)

    def id(self, prefix: str) -> str:
        return f"{prefix}-{secrets.token_hex(12)}"

    def run(self, request: EngineRequest) -> Run:
        """Submits to the engine.

        Raises:
            Busy, TooLong.
        """
        if self.service.log_prompts:
            text = self.served.tokenizer.decode(request.prompt, skip_special_tokens=False)
            log.info("prompt: %s", json.dumps(text, ensure_ascii=False))
        return Run(self.served.engine, request, self.service.metrics, self.record)


async def respond(call: Call, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """The JSON that `work` gives; `work` is cancelled when the client leaves."""
    body = await while_connected(call.receive, work)
    return Gone() if body is None else JSONResponse(body)
