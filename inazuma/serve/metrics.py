"""What Prometheus scrapes at `/metrics`.

| name | what | vLLM calls it |
|---|---|---|
| `inazuma_requests_running`, `_waiting` | requests that the engine computes, and that wait for it | `vllm:num_requests_running`, `_waiting` |
| `inazuma_cache_tokens_used`, `_total`, `inazuma_cache_usage_ratio` | tokens that the cache holds, and can hold | `vllm:kv_cache_usage_perc` |
| `inazuma_prompt_tokens_total`, `inazuma_cached_prompt_tokens_total` | tokens of prompts; of them taken from the cache | `vllm:prompt_tokens_total`, `vllm:prefix_cache_hits_total` |
| `inazuma_new_tokens_total` | tokens written | `vllm:generation_tokens_total` |
| `inazuma_drafted_tokens_total`, `inazuma_accepted_tokens_total` | guesses by multi-token prediction, and the right ones | `vllm:spec_decode_num_draft_tokens_total`, `..._accepted_tokens_total` |
| `inazuma_steps_total` | passes through the model | `vllm:iteration_tokens_total_count` |
| `inazuma_requests_total{reason}` | ended requests: stop, length, cancelled, failed | `vllm:request_success_total{finished_reason}` |
| `inazuma_time_to_first_token_seconds` | histogram, from the request's arrival at the engine | `vllm:time_to_first_token_seconds` |
| `inazuma_time_per_output_token_seconds` | histogram, mean of a request's tokens after the first | `vllm:request_time_per_output_token_seconds` |
| `inazuma_request_seconds` | histogram, in the engine | `vllm:e2e_request_latency_seconds` |
| `process_resident_memory_bytes`, `process_cpu_seconds_total` | of the server's process, on Linux | the same |
| `inazuma_http_requests_total{method,path,status}`, `inazuma_http_request_seconds{path}` | answers over HTTP | `http_requests_total` |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from inazuma.serve.request import Done

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = {
    "requests_running": "Requests that the engine computes.",
    "requests_waiting": "Requests that wait for the engine.",
    "cache_tokens_used": "Tokens in the cache.",
    "cache_tokens_total": "Tokens that the cache can hold.",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "cached_prompt_tokens": "Tokens of prompts that were taken from the cache.",
    "new_tokens": "Tokens written.",
    "drafted_tokens": "Tokens guessed by multi-token prediction.",
    "accepted_tokens": "Guesses that were right.",
    "steps": "Passes through the model.",
}
_REASONS = ("stop", "length", "cancelled", "failed")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counters of one server; `engine_metrics` gives the engine's (none while it loads)."""

    def __init__(self, engine_metrics: Callable[[], Mapping[str, float]]):
        self.registry = CollectorRegistry(auto_describe=False)
        shared = {"registry": self.registry}
        self._first = Histogram(
            "inazuma_time_to_first_token_seconds", "To the first token.", buckets=_SECONDS, **shared
        )
        self._token = Histogram(
            "inazuma_time_per_output_token_seconds", "A token after the first.", buckets=_TOKEN_SECONDS, **shared
        )
        self._request = Histogram("inazuma_request_seconds", "Requests in the engine.", buckets=_SECONDS, **shared)
        self._http = Counter(
            "inazuma_http_requests", "Answers over HTTP.", ("method", "path", "status"), registry=self.registry
        )
        self._http_seconds = Histogram(
            "inazuma_http_request_seconds", "Answers over HTTP.", ("path",), buckets=_SECONDS, **shared
        )
        ProcessCollector(registry=self.registry)
        self._engine_metrics = engine_metrics
        self.registry.register(self)

    def engine_done(self, done: Done) -> None:
        """Observes an ended request."""
        self._request.observe(done.total_s)
        if done.first_token_s is not None:
            self._first.observe(done.first_token_s)
            if done.new_tokens > 1:
                self._token.observe((done.total_s - done.first_token_s) / (done.new_tokens - 1))

    def http_done(self, method: str, path: str, status: int, seconds: float) -> None:
        """Observes an answer; `path` is the route's, not the client's, so that there are few."""
        self._http.labels(method, path, str(status)).inc()
        self._http_seconds.labels(path).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The engine's own, read when they are scraped."""
        values = self._engine_metrics()
        for name, text in _GAUGES.items():
            if name in values:
                yield GaugeMetricFamily(f"inazuma_{name}", text, value=values[name])
        if values.get("cache_tokens_total"):
            ratio = values.get("cache_tokens_used", 0) / values["cache_tokens_total"]
            yield GaugeMetricFamily("inazuma_cache_usage_ratio", "How full the cache is, 0 to 1.", value=ratio)
        for name, text in _COUNTERS.items():
            if name in values:
                yield CounterMetricFamily(f"inazuma_{name}", text, value=values[name])
        ended = CounterMetricFamily("inazuma_requests", "Ended requests.", labels=["reason"])
        for reason in _REASONS:
            if f"requests_{reason}" in values:
                ended.add_metric([reason], values[f"requests_{reason}"])
        yield ended

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
