"""What a verdict says of latency is simulated from service times. Here requests really come on a Poisson clock, whether
or not earlier ones are answered, and wait for one worker; their latencies must be those that were foretold."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import numpy as np
import pytest

from inazuma.rightsize.linear import fit_linear, vectorizer_choices
from inazuma.rightsize.prompted import Asked
from inazuma.rightsize.task import Prompted, Task
from inazuma.runs.load import under_load
from tests.rightsize.planted import keyword

QUANTILES = (0.5, 0.95, 0.99)
REPLICATES, LEVEL, STRETCH = 200, 0.99, 10
Answering = Callable[[str], object]


def arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    """Seconds at which requests come, on a Poisson clock."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=count))


def open_loop(start: Callable[[float, str], None], texts: Sequence[str], moments: np.ndarray) -> None:
    """Calls `start` with each request's moment (on the monotonic clock) and text when it is due, and never waits for
    an answer. A request that the clock was late for has its moment all the same."""
    began = time.monotonic() + 0.05
    for i, moment in enumerate(began + moments):
        if (left := moment - time.monotonic()) > 0:
            time.sleep(left)
        start(float(moment), texts[i % len(texts)])


def at_one_worker(answer: Answering, texts: Sequence[str], moments: np.ndarray) -> np.ndarray:
    """Milliseconds from arrival to answer where one thread answers what waits in a line."""
    line: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()
    took: list[float] = []

    def work() -> None:
        while (request := line.get()) is not None:
            answer(request[1])
            took.append(1000 * (time.monotonic() - request[0]))

    worker = threading.Thread(target=work)
    worker.start()
    open_loop(lambda moment, text: line.put((moment, text)), texts, moments)
    line.put(None)
    worker.join()
    return np.array(took)


def at_a_server(answer: Answering, texts: Sequence[str], moments: np.ndarray) -> np.ndarray:
    """Milliseconds from arrival to answer where every request goes out when it comes; the line is the server's."""
    took: list[float] = []

    def ask(moment: float, text: str) -> None:
        answer(text)
        took.append(1000 * (time.monotonic() - moment))

    with ThreadPoolExecutor(64) as pool:
        waiting = []
        open_loop(lambda moment, text: waiting.append(pool.submit(ask, moment, text)), texts, moments)
        for one in waiting:
            one.result()
    return np.array(took)


def one_by_one(answer: Answering, texts: Sequence[str], count: int) -> np.ndarray:
    """Milliseconds of single answers, as `inazuma.rightsize.measure` takes them."""
    took = []
    for i in range(count):
        began = time.perf_counter()
        answer(texts[i % len(texts)])
        took.append(1000 * (time.perf_counter() - began))
    return np.array(took)


def foretold(service_ms: Sequence[np.ndarray], rate: float, count: int) -> np.ndarray:
    """[low, high] of each quantile of a live run: 99 % of runs simulated from the times measured beside each part of
    it, drawn with replacement in stretches of ten, with arrivals of their own; float64 `[3, 2]`.

    By Lindley's recursion, written again here. Every part begins with nobody waiting.
    """
    found = []
    for replicate in range(REPLICATES):
        random = np.random.default_rng(replicate)
        times: list[float] = []
        for part, measured in enumerate(service_ms):
            starts = random.integers(len(measured), size=-(-count // STRETCH))
            places = (starts[:, None] + np.arange(STRETCH)).ravel()[:count] % len(measured)
            end = 0.0
            moments = 1000 * arrivals(rate, count, 10_000 + replicate * len(service_ms) + part)
            for moment, service in zip(moments.tolist(), measured[places].tolist(), strict=True):
                end = max(end, moment) + service
                times.append(end - moment)
        found.append(np.quantile(times, QUANTILES))
    tail = (1 - LEVEL) / 2
    return np.quantile(found, [tail, 1 - tail], axis=0).T


def compare(
    measure: Callable[[int], np.ndarray],
    run: Callable[[np.ndarray], np.ndarray],
    *,
    busy: float,
    parts: int,
    count: int,
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Live latencies at a load of `busy`, the service times measured beside them, and the rate; fails where a quantile
    lies outside of what is foretold, or where what the verdict says does.

    The two take turns, so that a machine that has grown slower meanwhile has done so for both.
    """
    rate = busy * 1000 / measure(count).mean()
    live, service = [], []
    for part in range(parts):
        before = measure(count // 2)
        live.append(run(arrivals(rate, count, part)))
        service.append(np.concatenate([before, measure(count // 2)]))
    together, measured = np.concatenate(live), np.concatenate(service)
    intervals = foretold(service, rate, count)
    said = np.quantile(under_load(measured, rate), QUANTILES)
    for quantile, here, (low, high), verdict in zip(
        QUANTILES, np.quantile(together, QUANTILES), intervals, said, strict=True
    ):
        print(f"p{100 * quantile:g}: {here:.2f} ms live, {verdict:.2f} said, [{low:.2f}, {high:.2f}] foretold")
    for quantile, here, (low, high), verdict in zip(
        QUANTILES, np.quantile(together, QUANTILES), intervals, said, strict=True
    ):
        assert low <= here <= high, f"p{100 * quantile:g}: {here:.2f} ms live, [{low:.2f}, {high:.2f}] foretold"
        assert low <= verdict <= high, f"p{100 * quantile:g}: {verdict:.2f} ms said, [{low:.2f}, {high:.2f}] foretold"
    # It could have failed: at a third of the load such latencies are not foretold.
    assert np.quantile(together, 0.95) > foretold(service, rate / 3, count)[1, 1]
    return together, service, rate


@pytest.mark.slow
def test_a_real_rung_waits_as_foretold():
    train = keyword(400)
    model = fit_linear([row["text"] for row in train], [row["label"] for row in train], vectorizer_choices()[1], seed=0)
    # Texts of hundreds of words take milliseconds, against which this clock's and this machine's unrest is small.
    rows = [row["text"] for row in keyword(3000, seed=2)]
    texts = [" ".join(rows[i : i + 60]) for i in range(0, 3000, 60)]

    def answer(text: str) -> object:
        return model.answer([text])

    one_by_one(answer, texts, 100)
    compare(
        lambda n: one_by_one(answer, texts, n), lambda moments: at_one_worker(answer, texts, moments),
        busy=0.5, parts=10, count=150,
    )  # fmt: skip


class Stub:
    """A server of chat completions that answers one request after another, in times drawn from a known distribution."""

    def __init__(self, draw: Callable[[], float]):
        slept = self.slept = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                seconds = draw()
                time.sleep(seconds)
                slept.append(1000 * seconds)
                content = json.dumps({"choices": [{"message": {"content": '{"label": "praise"}'}}]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        class Line(HTTPServer):
            request_queue_size = 1024  # who waits longer than this is turned away and comes again

        self.server = Line(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.mark.slow
def test_an_asked_model_waits_as_foretold():
    draw = np.random.default_rng(3)
    stub = Stub(lambda: float(draw.gamma(4, 0.01)))  # 40 ms in the mean, 20 ms spread
    task = Task(data="a.csv", prompted=Prompted(address=stub.address, model="large"))
    asked = Asked(task, ["complaint", "praise"], [], {"url": stub.address, "model": "large"}, None)
    numbers = iter(range(10**9))
    with httpx2.Client(timeout=60, trust_env=False, limits=httpx2.Limits(max_connections=64)) as client:

        def answer(text: str) -> float:
            # Another text each time: nothing is asked twice.
            return asked._ask(client, f"{text} {next(numbers)}").milliseconds

        try:
            live, service, rate = compare(
                lambda n: np.array([answer("one") for _ in range(n)]),
                lambda moments: at_a_server(answer, ["live"], moments),
                busy=0.5, parts=6, count=150,
            )  # fmt: skip
        finally:
            stub.server.shutdown()
    # The server took the times that it was to take, and the mean wait is Pollaczek's and Khinchin's.
    assert np.mean(stub.slept) == pytest.approx(40, rel=0.05) and np.std(stub.slept) == pytest.approx(20, rel=0.1)
    measured = np.concatenate(service)
    busy = rate * measured.mean() / 1000
    mean = measured.mean() + rate / 1000 * np.mean(measured**2) / (2 * (1 - busy))
    assert live.mean() == pytest.approx(mean, rel=0.15)
