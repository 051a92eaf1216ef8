"""A request's way through the engine as the API follows it: submitted, counted, cancelled when nobody waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inazuma.serve.errors import APIError, error_of
from inazuma.serve.metrics import Metrics
from inazuma.serve.request import Done, Engine, Request, Token
from inazuma.serve.security import Record

T = TypeVar("T")


class Run:
    """One request in the engine. `async with` it, so that it is cancelled however its reader ends.

    Iterating gives lists of tokens as they come; `done` is there afterwards.
    """

    def __init__(self, engine: Engine, request: Request, metrics: Metrics, record: Record):
        self._stream = engine.submit(request)
        self._metrics, self._record = metrics, record
        self._stopped = False
        self._done: Done | None = None
        self.new_tokens = 0

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.cancel()

    def stop(self) -> None:
        """The text is complete (a stop string): the engine need not go on; later tokens are not given out."""
        self._stopped = True
        self._stream.cancel()

    async def __aiter__(self) -> AsyncIterator[list[Token]]:
        async for event in self._stream:
            if isinstance(event, Done):
                self._end(event)
                return
            if not self._stopped:
                self.new_tokens += len(event)
                yield event
        raise APIError(500, "the engine ended this request without saying so", code="internal_error")

    def _end(self, done: Done) -> None:
        self._done = done
        self._metrics.engine_done(done)
        self._record.new_tokens += done.new_tokens
        if done.reason == "failed":
            raise RuntimeError(f"the engine failed: {done.error}")
        if done.reason == "cancelled" and not self._stopped:
            raise APIError(503, "the server is shutting down", code="shutting_down")

    @property
    def done(self) -> Done:
        assert self._done is not None, "read the tokens first"
        return self._done

    @property
    def reason(self) -> str:
        """Why the text ended: "stop" or "length"."""
        return "length" if self.done.reason == "length" and not self._stopped else "stop"

    async def read(self) -> Done:
        """To the end, for what is in `Done` alone."""
        async for _ in self:
            pass
        return self.done


def usage(first_of_each_prompt: Iterable[Done], new_tokens: int, record: Record) -> dict[str, Any]:
    """OpenAI's usage: a prompt counts once, whatever is written after it."""
    prompts = list(first_of_each_prompt)
    prompt_tokens = sum(done.prompt_tokens for done in prompts)
    record.prompt_tokens = prompt_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(done.cached_tokens for done in prompts)},
    }


def random_seed() -> int:
    """A seed for who gave none; below 2^31, so that every client reads it back as it is."""
    return secrets.randbits(31)


def seed_of_choice(seed: int, choice: int) -> int:
    """The first choice has the seed itself: asking for more changes none of those before."""
    if choice == 0:
        return seed % 2**63
    return int.from_bytes(hashlib.sha256(f"{seed}:{choice}".encode()).digest()[:7], "big")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, which is cancelled when the client leaves first: then None."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def merge(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[T]:
    """What several sources give, as it comes."""
    arrived: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    async def follow(source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                await arrived.put(item)
        except Exception as error:
            await arrived.put(error)
        else:
            await arrived.put(None)

    following = [asyncio.ensure_future(follow(source)) for source in sources]
    left = len(following)
    try:
        while left:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in following:
            task.cancel()


class Gone(Response):
    """To a client that has left; the status is for the log."""

    def __init__(self) -> None:
        super().__init__(status_code=499)


class EventStream(Response):
    """Server-sent events. `running` is closed with it: that cancels what the client no longer reads.

    An error on the way is the last event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], running: AsyncExitStack):
        super().__init__()
        del self.headers["content-length"]
        self._events, self._running = events, running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._running:
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except OSError:
            return  # the client left
        except Exception as error:
            body = data(error_of(error).body())
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


STREAMED = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
"""What the OpenAPI document says of an answer that may be streamed."""


def data(body: dict[str, Any], event: str | None = None) -> bytes:
    """One server-sent event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


DONE = b"data: [DONE]\n\n"
