"""An engine for the API's tests: one request at a time, on a thread, really computed with a tiny model.

It keeps to the contract in `inazuma.serve.request` in the plainest way and is no faster than it must be. `say` makes
the model likely to write a given text, through its logits: masks, stops and log-probabilities stay what they are.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inazuma.model import Transformer
from inazuma.model.attention import Observation
from inazuma.model.cache import Cache
from inazuma.serve.request import Busy, Done, Request, Sampling, Token, TooLong


@dataclass
class StandInStream:
    request: Request
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    started: float = field(default_factory=time.perf_counter)

    def __aiter__(self) -> StandInStream:
        return self

    async def __anext__(self):
        if self.ended:
            raise StopAsyncIteration
        event = await self.events.get()
        self.ended = isinstance(event, Done)
        return event

    def cancel(self) -> None:
        self.cancelled.set()

    def put(self, event) -> None:
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class StandIn:
    def __init__(self, model: Transformer, *, context: int = 512, waiting: int = 64):
        self.model, self.context, self.waiting = model, context, waiting
        self.counts: Counter[str] = Counter()
        self.requests: list[Request] = []
        self.say: list[int] = []
        """Token ids that the next texts are to begin with."""
        self.step_seconds = 0.0
        self.fail = False
        """Whether the next step fails."""
        self._queue: queue.Queue[StandInStream | None] = queue.Queue()
        self._closed = False
        self._running: StandInStream | None = None
        self._all: list[StandInStream] = []
        self._seen: set[tuple[int, ...]] = set()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, request: Request) -> StandInStream:
        if len(request.prompt) + request.max_tokens > self.context:
            raise TooLong(f"{len(request.prompt)} + {request.max_tokens} tokens; the context holds {self.context}")
        if self._closed or self._queue.qsize() >= self.waiting:
            raise Busy("too many requests are waiting", 1.5)
        self.requests.append(request)
        stream = StandInStream(request, asyncio.get_running_loop())
        self._all.append(stream)
        self._queue.put(stream)
        return stream

    def metrics(self) -> dict[str, float]:
        names = ("prompt_tokens", "cached_prompt_tokens", "new_tokens", "drafted_tokens", "accepted_tokens", "steps")
        ended = {f"requests_{reason}": self.counts[reason] for reason in ("stop", "length", "cancelled", "failed")}
        return {
            "requests_running": float(self._running is not None),
            "requests_waiting": self._queue.qsize(),
            "cache_tokens_used": 0,
            "cache_tokens_total": self.context,
            **{name: self.counts[name] for name in names},
            **ended,
        }

    def close(self, grace: float) -> None:
        self._closed = True
        end = time.monotonic() + grace
        while (self._running or not self._queue.empty()) and time.monotonic() < end:
            time.sleep(0.01)
        for stream in self._all:
            stream.cancel()
        self._queue.put(None)

    def _work(self) -> None:
        while (stream := self._queue.get()) is not None:
            self._running = stream
            try:
                done = self._serve(stream)
            except Exception as error:
                done = Done("failed", len(stream.request.prompt), 0, 0, error=str(error))
            self.counts[done.reason] += 1
            self.counts["prompt_tokens"] += done.prompt_tokens
            self.counts["cached_prompt_tokens"] += done.cached_tokens
            self.counts["new_tokens"] += done.new_tokens
            self._running = None
            stream.put(done)

    @torch.inference_mode()
    def _serve(self, stream: StandInStream) -> Done:
        request, model = stream.request, self.model
        prompt = tuple(request.prompt)
        # Nothing is cached; what a cache would have is told, so that the usage can be tested.
        cached = len(prompt) - 1 if prompt in self._seen else 0
        self._seen.add(prompt)
        seen: list[Observation] = []
        cache = Cache(1, len(prompt) + request.max_tokens + 1)
        hidden_BTE, _, _ = model.read(torch.tensor([prompt]), cache=cache, observe=seen.append)
        logits_TV = model.lm_head(hidden_BTE)[0].double()
        told = {}
        if request.prompt_logprobs is not None:
            rows = logits_TV[:-1].log_softmax(-1)
            pairs = zip(prompt[1:], rows, strict=True)
            tokens = (
                Token(prompt[0]),
                *(_token(token, row, request.prompt_logprobs) for token, row in pairs),
            )
            told["prompt"] = tokens[request.prompt_logprobs_start :]
        if request.hidden:
            told["hidden"] = hidden_BTE[0].float().mean(0)
        if request.selection:
            told["selection"] = tuple(
                None if observation.result.indices is None else _selected(observation.result.indices)
                for observation in seen
            )
        logits, written, reason, first = logits_TV[-1], [], "length", None
        say = self.say
        while len(written) < request.max_tokens:
            if stream.cancelled.is_set():
                reason = "cancelled"
                break
            if self.fail:
                raise RuntimeError("secret of the inside")
            time.sleep(self.step_seconds)
            self.counts["steps"] += 1
            likely = logits.clone()
            if len(written) < len(say):
                likely[say[len(written)]] += 1000
            token = draw(likely, request, written)
            if request.mask is not None and token not in request.stop_ids:
                assert request.mask.accept(token)
            first = first or time.perf_counter() - stream.started
            written.append(token)
            stream.put([_token(token, likely.log_softmax(-1), request.logprobs)])
            if token in request.stop_ids:
                reason = "stop"
                break
            if len(written) < request.max_tokens:
                logits = model(torch.tensor([[token]]), cache=cache)[0, -1].double()
        return Done(
            reason,
            len(prompt),
            cached,
            len(written),
            first_token_s=first,
            total_s=time.perf_counter() - stream.started,
            **told,
        )


def _selected(indices: Tensor) -> tuple[int, ...]:
    return tuple(index for index in indices[0, -1].tolist() if index >= 0)


def _token(token: int, logprobs: Tensor, top: int | None) -> Token:
    if top is None:
        return Token(token)
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return Token(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def draw(logits: Tensor, request: Request, written: list[int]) -> int:
    """In the contract's order: penalties and bias, mask, temperature, top_k, min_p, top_p."""
    sampling: Sampling = request.sampling
    logits = logits.clone()
    for token in {*request.prompt, *written}:
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, times in Counter(written).items():
        logits[token] -= sampling.presence_penalty + times * sampling.frequency_penalty
    for token, bias in sampling.logit_bias.items():
        logits[token] = float("-inf") if bias <= -100 else logits[token] + bias
    if request.mask is not None:
        bitmask = torch.zeros((len(logits) + 31) // 32, dtype=torch.int32)
        request.mask.fill(bitmask)
        ids = torch.arange(len(logits))
        allowed = (bitmask[ids // 32] >> (ids % 32)) & 1
        logits[allowed == 0] = float("-inf")
    if sampling.temperature == 0:
        return int(logits.argmax())
    p, ids = (logits / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    if sampling.top_k:
        p[sampling.top_k :] = 0
    p[p < sampling.min_p * p[0]] = 0
    p[p.cumsum(0) - p >= sampling.top_p * p.sum()] = 0
    generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 % 2**63 + len(written))
    uniform = torch.rand((), generator=generator, dtype=torch.double) * p.sum()
    return int(ids[int((p.cumsum(0) <= uniform).sum().clamp(max=int((p > 0).sum()) - 1))])
