"""Latency under load, and what a request costs, as formulas over measured service times.

Requests come when they come (open loop: Poisson arrivals) and wait in one line before one worker. Service times are
measured, one request after another; when each request then begins and ends follows from them and from the arrivals
(Lindley, Mathematical Proceedings of the Cambridge Philosophical Society 48, 1952). A server that answers several
requests at once does better than this.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.runs.formulas import Figures, formula

REQUESTS = 4000
"""Simulated arrivals; the measured service times are repeated in order."""
HOUR, MONTH = 3600.0, 30.44 * 86400
UNLIMITED_LOAD = 0.7
"""The share of a worker's capacity that is used where no latency limit says how much can be."""
SEED = 0


def under_load(service_ms: np.ndarray, rate: float) -> np.ndarray:
    """Milliseconds from arrival to answer of `REQUESTS` Poisson arrivals, `rate` a second, at one worker."""
    random = np.random.Generator(np.random.PCG64(SEED))
    arrivals = np.cumsum(random.exponential(1000.0 / rate, size=REQUESTS))
    ends, end = np.empty(REQUESTS), 0.0
    for i, arrival in enumerate(arrivals.tolist()):
        end = max(arrival, end) + float(service_ms[i % len(service_ms)])
        ends[i] = end
    return ends - arrivals


def greatest_load(service_ms: np.ndarray, limit_ms: float | None) -> float:
    """The most requests a second that one worker answers with a 99th percentile within the limit; 0 if none."""
    return _greatest_load(service_ms.tobytes(), limit_ms)


@functools.lru_cache(maxsize=64)
def _greatest_load(values: bytes, limit_ms: float | None) -> float:
    service_ms = np.frombuffer(values)
    capacity = 1000.0 / float(service_ms.mean())
    if limit_ms is None:
        return UNLIMITED_LOAD * capacity
    if float(np.quantile(service_ms, 0.99)) > limit_ms:
        return 0.0
    low, high = 0.0, capacity
    for _ in range(20):
        middle = (low + high) / 2
        if float(np.quantile(under_load(service_ms, middle), 0.99)) <= limit_ms:
            low = middle
        else:
            high = middle
    return low


def rank_interval(
    values: np.ndarray, quantile: float, level: float = 0.95, measured: int | None = None
) -> tuple[float, float]:
    """[low, high] of a quantile by order statistics: no shape is assumed, and few values give the extremes.

    Hahn and Meeker, Statistical Intervals (1991), section 5.2. Where the values follow from fewer that were `measured`,
    the ranks are those of so many.
    """
    ordered, n = np.sort(values), measured or len(values)
    tail = (1 - level) / 2
    low = max(int(binom.ppf(tail, n, quantile)) - 1, 0)
    high = min(int(binom.ppf(1 - tail, n, quantile)), n - 1)
    # The rank r of n values is the place (r / (n - 1)) of however many there are.
    places = [round(rank / max(n - 1, 1) * (len(ordered) - 1)) for rank in (low, high)]
    return float(ordered[places[0]]), float(ordered[places[1]])


def _services(figures: Figures, record: str) -> np.ndarray:
    return np.array(figures.column(record, "service_ms"))


def replicas(service_ms: np.ndarray, peak: float, limit_ms: float | None) -> int:
    """Workers that carry the peak; 0 where no number does, because one request alone takes longer than the limit."""
    return workers_for(peak, greatest_load(service_ms, limit_ms))


def workers_for(peak: float, load: float) -> int:
    """Workers that carry the peak where one of them carries `load`, both in requests a second; 0 where that is 0."""
    return math.ceil(peak / load - 1e-9) if load > 0 else 0


@formula
def worker_load(figures: Figures, *, record: str, limit_ms: float | None = None) -> float:
    """The most requests a second that one worker answers within the limit; see `greatest_load`."""
    return greatest_load(_services(figures, record), limit_ms)


@formula
def workers(figures: Figures, *, record: str, peak: float, limit_ms: float | None = None) -> int:
    """How many workers carry the peak; see `replicas`."""
    return replicas(_services(figures, record), peak, limit_ms)


@formula
def latency(figures: Figures, *, record: str, quantile: float, peak: float, limit_ms: float | None = None) -> float:
    """A quantile of the milliseconds from arrival to answer at the peak, shared out among the workers it needs."""
    service = _services(figures, record)
    needed = replicas(service, peak, limit_ms)
    # Where no number of workers keeps to the limit: without any waiting, the least it can be.
    times = under_load(service, peak / needed) if needed else service
    return float(np.quantile(times, quantile))


@formula
def latency_interval(
    figures: Figures, *, record: str, quantile: float, peak: float, limit_ms: float | None = None
) -> list[float]:
    """[low, high] of `latency` by ranks, of as many requests as were measured."""
    service = _services(figures, record)
    needed = replicas(service, peak, limit_ms)
    times = under_load(service, peak / needed) if needed else service
    return list(rank_interval(times, quantile, measured=len(service)))


def request_cost(facts: Mapping[str, Any], prices: Mapping[str, float], workers: int, rate: float) -> dict[str, float]:
    """What one request costs at an average `rate` a second, term by term.

    machines + energy + tokens + (labels + training) / requests in the months they are written off over
    """
    months = prices["months"] * MONTH * rate
    hosted = facts["hosted"]
    # Records from before GPUs were priced name none.
    hour = prices["machine_hour"] + (prices["gpu_hour"] if facts.get("gpu") else 0.0)
    return {
        "machines": hour * max(workers, 1) / (HOUR * rate) if hosted else 0.0,
        "energy": facts["joules"] / 3.6e6 * prices["kilowatt_hour"] if hosted else 0.0,
        "tokens": (
            0.0
            if hosted
            else (facts["input_tokens"] * prices["api_input_mtok"] + facts["output_tokens"] * prices["api_output_mtok"])
            / 1e6
        ),
        "labels": facts["labels"] * prices["label"] / months,
        "training": facts["training_seconds"] / HOUR * hour / months,
    }


@formula
def thousand_requests(
    figures: Figures,
    *,
    record: str,
    of: Mapping[str, str],
    prices: Mapping[str, float],
    part: Literal["all", "all but energy", "machines", "energy", "tokens", "labels", "training"] = "all",
) -> float:
    """What 1000 requests cost at the traffic stated; `record` holds the rung's facts, `of` names its workers."""
    facts = read_json(figures.record_path(record))
    count = figures.figure(of["workers"])
    try:
        terms = request_cost(facts, prices, int(count), prices["requests_per_second"])
    except KeyError as error:
        raise UserError(f"{record}: no {error} to reckon with") from None
    if part == "all but energy":
        terms["energy"] = 0.0
    return 1000 * (math.fsum(terms.values()) if part.startswith("all") else terms[part])
