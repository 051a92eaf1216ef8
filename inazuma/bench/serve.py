"""How fast a server is, through its HTTP API, and the servers to ask: this project's and llama.cpp's, each in a process
of its own."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2

from inazuma.errors import RunError

WORDS = "time year people way day man thing woman life child world school state family group country".split()  # noqa: SIM905
NEW, PROMPT, CLIENTS = 128, 512, 8


def words(count: int, seed: int) -> str:
    """So many words that no cache has seen."""
    draw = random.Random(seed)
    return f"{seed}: " + " ".join(draw.choice(WORDS) for _ in range(count))


def stream(client: httpx2.Client, body: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    """When each piece of an answer came, in seconds from asking, and the usage."""
    started, times, usage = time.perf_counter(), [], {}
    body = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0} | body
    with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RunError(f"{response.status_code}: {response.read()[:200]!r}")
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if event.get("choices"):
                times.append(time.perf_counter() - started)
    return times, usage


def client_of(url: str) -> httpx2.Client:
    """A client that connects anew for each request: servers close idle connections when they like."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.Client(base_url=url, timeout=httpx2.Timeout(30, read=600), trust_env=False, limits=limits)


def turn_records(url: str, body: dict[str, Any], turn: int) -> Iterator[dict[str, Any]]:
    """Tokens and seconds of one turn: writing alone ("decode"), reading a prompt ("prefill"), and writing for several
    clients at once ("clients"). No prompt comes twice, so that none is found in a cache."""
    with client_of(url) as client:
        stream(client, body | {"prompt": words(5, 2000 + turn), "max_tokens": 8})
        times, usage = stream(client, body | {"prompt": words(20, turn), "max_tokens": NEW})
        yield {"figure": "decode", "tokens": usage["completion_tokens"] - 1, "seconds": times[-1] - times[0]}
        started = time.perf_counter()
        _, usage = stream(client, body | {"prompt": words(PROMPT, 1000 + turn), "max_tokens": 1})
        yield {"figure": "prefill", "tokens": usage["prompt_tokens"], "seconds": time.perf_counter() - started}

        def one(number: int) -> int:
            prompt = words(20, 3000 + 100 * turn + number)
            return stream(client, body | {"prompt": prompt, "max_tokens": NEW})[1]["completion_tokens"]

        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            written = sum(pool.map(one, range(CLIENTS)))
        yield {"figure": "clients", "tokens": written, "seconds": time.perf_counter() - started}


# ---------------------------------------------------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def inazuma_server(folder: Path, *options: str, log: IO[str] | int = subprocess.DEVNULL) -> Iterator[str]:
    """This project's, in a process of its own, whose standard error goes to `log`."""
    command = [sys.executable, "-m", "inazuma", "serve", str(folder), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        for line in process.stdout:
            if " is served at " in line:
                yield line.split()[-1]
                return
        raise RunError(f"{' '.join(command)} ended")
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _llama(path: str, port: int, threads: int, clients: int, context: int) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port, parameters.hostnames = path, port, ["127.0.0.1"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_parallel, parameters.n_ctx = clients, clients * context
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    time.sleep(3600)
    del server


@contextmanager
def llama_server(path: Path, threads: int, clients: int, context: int) -> Iterator[str]:
    """llama.cpp's, from xllamacpp's wheel, in a process of its own, with room for `context` tokens of each client."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = (str(path), port, threads, clients, context)
    process = multiprocessing.get_context("spawn").Process(target=_llama, args=given)
    process.start()
    try:
        with client_of(f"http://127.0.0.1:{port}") as client:
            for _ in range(240):
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx2.HTTPError:
                    pass
                time.sleep(0.5)
            else:
                raise RunError("llama.cpp's server did not come up")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


# ---------------------------------------------------------------------------------------------------------------------
# Long contexts
# ---------------------------------------------------------------------------------------------------------------------


def by_context(url: str, body: dict[str, Any], lengths: list[int], vocabulary: int) -> dict[str, dict[str, float]]:
    """Milliseconds a token after prompts of these lengths, and seconds to the first one."""
    found = {}
    with client_of(url) as client:
        for length in lengths:
            draw = random.Random(length)
            prompt = [draw.randrange(100, vocabulary) for _ in range(length)]
            times, usage = stream(client, body | {"prompt": prompt, "max_tokens": 48})
            gaps = [after - before for before, after in itertools.pairwise(times[8:])]
            found[str(usage["prompt_tokens"])] = {
                "ms_per_token": 1e3 * (times[-1] - times[8]) / (len(times) - 9),
                "median_ms": 1e3 * statistics.median(gaps),
                "first_token_s": times[0],
            }
    return found


def second_turn(url: str, body: dict[str, Any], length: int, vocabulary: int) -> dict[str, float]:
    """Seconds to the first token of a prompt, and of one that goes on from it and its answer."""
    draw = random.Random(7)
    prompt = [draw.randrange(100, vocabulary) for _ in range(length)]
    with client_of(url) as client:
        first, _ = stream(client, body | {"prompt": prompt, "max_tokens": 8})
        more = [draw.randrange(100, vocabulary) for _ in range(60)]
        second, usage = stream(client, body | {"prompt": [*prompt, *more], "max_tokens": 8})
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {"first_s": first[0], "second_s": second[0], "ratio": first[0] / second[0], "cached": cached}


def behind_a_long_prompt(url: str, body: dict[str, Any], length: int, vocabulary: int, requests: int) -> dict[str, Any]:
    """The 95th percentile of short requests' time to the first token, alone and while a long prompt is read."""
    draw = random.Random(3)

    def short(client: httpx2.Client) -> float:
        prompt = [draw.randrange(100, vocabulary) for _ in range(64)]
        return stream(client, body | {"prompt": prompt, "max_tokens": 1})[0][0]

    def percentile(values: list[float]) -> float:
        return statistics.quantiles(values, n=20)[18]

    with client_of(url) as client:
        short(client)
        alone = [short(client) for _ in range(requests)]
        loaded: list[float] = []
        while len(loaded) < requests:
            prompt = [draw.randrange(100, vocabulary) for _ in range(length)]
            reading = threading.Thread(target=stream, args=(client, body | {"prompt": prompt, "max_tokens": 1}))
            reading.start()
            time.sleep(0.2)
            while reading.is_alive() and len(loaded) < requests:
                taken = short(client)
                if reading.is_alive():
                    loaded.append(taken)
                time.sleep(0.1)
            reading.join()
    before, during = percentile(alone), percentile(loaded)
    return {"alone_p95_s": before, "loaded_p95_s": during, "ratio": during / before, "requests": len(loaded)}
