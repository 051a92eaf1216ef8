"""How fast a model is served: this project's server, llama.cpp's and transformers, in turns on the same cores.

Everything is measured through the HTTP API of a server in a process of its own (transformers, which has no server that
reads several texts at once on a CPU, by `generate` in a process of its own), one at a time, medians of `turns`.
"""

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
from collections.abc import Callable, Iterator
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


def figures(url: str, body: dict[str, Any], turn: int) -> dict[str, float]:
    """Tokens a second of one turn: writing alone, reading a prompt, and writing for several clients."""
    with client_of(url) as client:
        stream(client, body | {"prompt": words(5, turn), "max_tokens": 8})
        times, usage = stream(client, body | {"prompt": words(20, turn), "max_tokens": NEW})
        decode = (usage["completion_tokens"] - 1) / (times[-1] - times[0])
        started = time.perf_counter()
        _, usage = stream(client, body | {"prompt": words(PROMPT, 1000 + turn), "max_tokens": 1})
        prefill = usage["prompt_tokens"] / (time.perf_counter() - started)

        def one(number: int) -> int:
            prompt = words(20, 100 * turn + number)
            return stream(client, body | {"prompt": prompt, "max_tokens": NEW})[1]["completion_tokens"]

        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            written = sum(pool.map(one, range(CLIENTS)))
        return {"decode": decode, "prefill": prefill, "clients": written / (time.perf_counter() - started)}


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


def _llama(path: str, port: int, threads: int, context: int) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.port, parameters.hostnames = path, port, ["127.0.0.1"]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_parallel, parameters.n_ctx = CLIENTS, context
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    time.sleep(3600)
    del server


@contextmanager
def llama_server(path: Path, threads: int, context: int) -> Iterator[str]:
    """llama.cpp's, from xllamacpp's wheel, in a process of its own."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_llama, args=(str(path), port, threads, context))
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


def _transformers(folder: str, dtype: str, turns: int, results: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    found = []
    with torch.inference_mode():
        for turn in range(turns + 1):
            ids = torch.randint(100, 1000, (1, 25), generator=torch.Generator().manual_seed(turn))
            begin = time.perf_counter()
            model.generate(ids, max_new_tokens=1, do_sample=False)
            first = time.perf_counter()
            model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
            decode = (NEW - 1) / (time.perf_counter() - first - (first - begin))
            long = torch.randint(100, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(turn))
            begin = time.perf_counter()
            model.generate(long, max_new_tokens=1, do_sample=False)
            found.append({"decode": decode, "prefill": PROMPT / (time.perf_counter() - begin), "clients": decode})
    results.put(found[1:])


def transformers_figures(folder: Path, dtype: str, turns: int) -> list[dict[str, float]]:
    """transformers by `generate`; its clients are answered one after another."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_transformers, args=(str(folder), dtype, turns, results))
    process.start()
    found = results.get(timeout=900)
    process.join()
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What is measured
# ---------------------------------------------------------------------------------------------------------------------


def compare(folder: Path, gguf: Path, *, turns: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The same weights in all servers: the median of each figure, and its range."""
    kinds: dict[str, Callable] = {
        f"inazuma {weights}": lambda weights=weights: inazuma_server(folder, "--quantize", weights)
        for weights in ("none", "int8", "int4")
    }
    for threads in (1, 2):
        kinds[f"llama.cpp {gguf.stem.rsplit('.')[-1]}, {threads} threads"] = lambda threads=threads: llama_server(
            gguf, threads, 2048 * CLIENTS
        )
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for turn in range(turns):
        for name, server in kinds.items():
            with server() as url, client_of(url) as client:
                model = client.get("/v1/models").json()["data"][0]["id"]
                end = {} if "llama" in name else {"logit_bias": {"0": -100, "2": -100}}
                extra = {"ignore_eos": True} if "llama" in name else {}
                found[name].append(figures(url, {"model": model, **end, **extra}, turn))
                say(f"{name}: {found[name][-1]}")
    found["transformers bfloat16"] = transformers_figures(folder, "bfloat16", turns)
    say(f"transformers: {found['transformers bfloat16'][-1]}")
    return {
        name: {
            figure: {"median": statistics.median(values), "range": [min(values), max(values)]}
            for figure in ("decode", "prefill", "clients")
            for values in [[one[figure] for one in turns_of]]
        }
        for name, turns_of in found.items()
    }


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
