"""What a server bears: many clients at once, of whom some leave, some send nonsense and some send too much.

Every request has the codes that are proper for it; any other one, a connection that breaks and a stream that stops
without saying why are counted as wrong. Memory is what the server itself says at `/metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from inazuma.bench.serve import words
from inazuma.errors import RunError

BUSY = (200, 429)
"""What a proper request may get: its answer, or to come again later."""

LONG_BODY = b'{"model": "x", "prompt": "' + b"x" * (9 << 20) + b'"}'
"""More than the server reads."""

PATIENCE = 400.0
"""Seconds that a client waits for an answer: on a slow machine 200 of them take turns for long."""


@dataclass
class Storm:
    """What a storm's requests got."""

    url: str
    model: str
    context: int
    codes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind of request: status codes, "left" where the client went, "cut" where a stream told an error at its end."""
    wrong: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """"whole", "first token" (of streams) and "refused"."""

    def got(self, kind: str, status: int, proper: tuple[int, ...], started: float, body: bytes) -> None:
        self.codes[kind][str(status)] += 1
        if status != 200:
            self.seconds["refused"].append(time.perf_counter() - started)
        if status not in proper:
            self.wrong.append(f"{kind}: {status} {body[:200]!r}")
        elif status != 200 and not _is_error(body):
            self.wrong.append(f"{kind}: {status} without an error's body: {body[:200]!r}")


def _is_error(body: bytes) -> bool:
    try:
        return set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False


def _body(storm: Storm, draw: random.Random, **more: Any) -> tuple[str, dict[str, Any]]:
    """A proper request for a text, and its path."""
    body = {"model": storm.model, "max_tokens": draw.randint(1, 12), "seed": draw.randrange(1000), **more}
    text = words(draw.randint(1, 60), draw.randrange(40))
    if draw.random() < 0.5:
        return "/v1/completions", body | {"prompt": text}
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}


async def _whole(storm: Storm, client: httpx2.AsyncClient, draw: random.Random) -> float:
    path, body = _body(storm, draw)
    started = time.perf_counter()
    answer = await client.post(path, json=body)
    storm.got("whole", answer.status_code, BUSY, started, answer.content)
    if answer.status_code == 200:
        storm.seconds["whole"].append(time.perf_counter() - started)
        if answer.json()["choices"][0]["finish_reason"] not in ("stop", "length"):
            storm.wrong.append(f"whole: {answer.content[:200]!r}")
    return _wait(answer)


def _wait(answer: httpx2.Response) -> float:
    """Seconds that a client who is told to come later waits: what it is told, or KeyError."""
    return float(answer.headers["retry-after"]) if answer.status_code == 429 else 0.0


async def _stream(storm: Storm, client: httpx2.AsyncClient, draw: random.Random) -> float:
    path, body = _body(storm, draw, stream=True)
    started, last = time.perf_counter(), ""
    async with client.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            storm.got("stream", answer.status_code, BUSY, started, await answer.aread())
            return _wait(answer)
        first = True
        async for line in answer.aiter_lines():
            if line and first:
                storm.seconds["first token"].append(time.perf_counter() - started)
                first = False
            last = line or last
    if last == "data: [DONE]":
        storm.got("stream", 200, BUSY, started, b"")
    elif '"error"' in last:
        storm.codes["stream"]["cut"] += 1
        storm.wrong.append(f"stream: {last[:200]}")
    else:
        storm.wrong.append(f"stream: ended without [DONE]: {last[:200]}")
    return 0.0


async def _leave(storm: Storm, client: httpx2.AsyncClient, draw: random.Random) -> float:
    """Leaves after some events, or before there is an answer at all."""
    path, body = _body(storm, draw, stream=draw.random() < 0.7, max_tokens=200, n=draw.choice((1, 1, 3)))
    started, stay = time.perf_counter(), draw.randint(0, 8)
    try:
        async with asyncio.timeout(draw.uniform(0, 2)), client.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                storm.got("leaves", answer.status_code, BUSY, started, await answer.aread())
                return _wait(answer)
            async for _ in answer.aiter_lines():
                stay -= 1
                if stay < 0:
                    break
    except TimeoutError:
        pass
    storm.codes["leaves"]["left"] += 1
    return 0.0


async def _cut_off(storm: Storm, _: httpx2.AsyncClient, draw: random.Random) -> float:
    """Promises a body, sends some of it and leaves."""
    address = httpx2.URL(storm.url)
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 500\r\n\r\n" + b"{" * draw.randint(0, 400))
    await writer.drain()
    await asyncio.sleep(draw.uniform(0, 0.2))
    writer.transport.abort()
    storm.codes["leaves within its body"]["left"] += 1
    return 0.0


async def _malformed(storm: Storm, client: httpx2.AsyncClient, draw: random.Random) -> float:
    path, body = _body(storm, draw)
    whole = json.dumps(body).encode()
    nonsense: list[bytes] = [
        whole[: draw.randrange(1, len(whole))],
        draw.randbytes(200),
        b"[" * 100_000,
        b'"text"',
        json.dumps(body | {"colour": "blue"}).encode(),
        json.dumps(body | {"max_tokens": "many"}).encode(),
        json.dumps(body | {"temperature": -1}).encode(),
        json.dumps(body | {"logit_bias": {"x": 5}}).encode(),
        b'{"model": "\\ud800"}',
    ]
    kind = draw.choice(("application/json",) * 9 + ("text/plain",))
    started = time.perf_counter()
    answer = await client.post(path, content=draw.choice(nonsense), headers={"content-type": kind})
    proper = (400,) if kind == "application/json" else (415,)
    storm.got("malformed", answer.status_code, proper, started, answer.content)
    return 0.0


async def _oversize(storm: Storm, client: httpx2.AsyncClient, draw: random.Random) -> float:
    """A prompt beyond the context, or a body beyond what is read."""
    started = time.perf_counter()
    if draw.random() < 0.2:
        answer = await client.post("/v1/completions", content=LONG_BODY, headers={"content-type": "application/json"})
        proper = (413,)
    else:
        text = words(2 * storm.context, draw.randrange(40))
        answer = await client.post("/v1/completions", json={"model": storm.model, "prompt": text})
        proper = (400,)
    storm.got("oversize", answer.status_code, proper, started, answer.content)
    return 0.0


KINDS: dict[Callable[[Storm, httpx2.AsyncClient, random.Random], Awaitable[float]], int] = {
    _whole: 35,
    _stream: 25,
    _leave: 18,
    _cut_off: 4,
    _malformed: 12,
    _oversize: 6,
}
"""How often each is drawn, of 100."""


async def blow(url: str, *, clients: int, seconds: float, seed: int = 0) -> tuple[Storm, dict[str, float]]:
    """So many clients, each with one request at a time, for so long.

    Returns:
        What they got, and the highest that each gauge of the server's stood at.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx2.Timeout(PATIENCE)
    async with httpx2.AsyncClient(base_url=url, timeout=timeout, trust_env=False, limits=limits) as client:
        [model] = (await client.get("/v1/models")).json()["data"]
        storm = Storm(url, model["id"], model["max_model_len"])
        end, peak = time.monotonic() + seconds, defaultdict(float)

        async def one(number: int) -> None:
            draw = random.Random(seed * 1000 + number)
            await asyncio.sleep(draw.uniform(0, min(2.0, seconds / 4)))
            while time.monotonic() < end:
                [kind] = draw.choices(list(KINDS), list(KINDS.values()))
                try:
                    wait = await kind(storm, client, draw)
                except (httpx2.HTTPError, OSError) as error:
                    storm.wrong.append(f"{kind.__name__}: {type(error).__name__} {error}")
                    wait = 0.0
                await asyncio.sleep(min(wait * draw.uniform(0.5, 1), max(0.0, end - time.monotonic())))

        async def watch() -> None:
            while True:
                for name, value in (await gauges(client)).items():
                    peak[name] = max(peak[name], value)
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(one, range(clients)))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching  # had it failed, the peaks would be those of a part of the storm
        return storm, dict(peak)


async def gauges(client: httpx2.AsyncClient) -> dict[str, float]:
    """The values at `/metrics` that have no labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if value and name != "#"}


async def at_rest(url: str, *, patience: float = PATIENCE) -> dict[str, float]:
    """The gauges when nothing runs or waits any more.

    Raises:
        RunError: something still does after `patience` seconds.
    """
    async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        end = time.monotonic() + patience
        while True:
            found = await gauges(client)
            if not found["inazuma_requests_running"] and not found["inazuma_requests_waiting"]:
                return found
            if time.monotonic() > end:
                raise RunError(f"{url}: still at work {patience:g} seconds after its last client left")
            await asyncio.sleep(0.5)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile and the longest."""
    if len(seconds) < 2:
        return {"count": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100)
    return {"count": len(seconds), "p50_s": cuts[49], "p95_s": cuts[94], "p99_s": cuts[98], "max_s": max(seconds)}


def weather(url: str, *, clients: int, seconds: float, warm: float) -> dict[str, Any]:
    """A storm of `seconds` after one of `warm`, which touches all memory that the server will need; and the record.

    `leak` is what resident memory grew by from the end of the first to the end of the second, both at rest.
    """

    async def both() -> dict[str, Any]:
        started = await at_rest(url)
        first, _ = await blow(url, clients=clients, seconds=warm, seed=1)
        before = await at_rest(url)
        storm, peak = await blow(url, clients=clients, seconds=seconds, seed=2)
        after = await at_rest(url)
        memory, files = "process_resident_memory_bytes", "process_open_fds"
        rows = {"started": started, "before": before, "peak": peak, "after": after}
        return {
            "clients": clients,
            "seconds": seconds,
            "warm_seconds": warm,
            "requests": sum(sum(codes.values()) for codes in storm.codes.values()),
            "codes": {kind: dict(sorted(codes.items())) for kind, codes in sorted(storm.codes.items())},
            "wrong": first.wrong + storm.wrong,
            "latency": {what: percentiles(found) for what, found in sorted(storm.seconds.items())},
            "memory_bytes": {when: row[memory] for when, row in rows.items()},
            "open_files": {when: row[files] for when, row in rows.items()},
            "cache_tokens_used": {when: row["inazuma_cache_tokens_used"] for when, row in rows.items()},
            "leak_bytes": after[memory] - before[memory],
        }

    return asyncio.run(both())
