"""The engine: one thread that reads and writes all texts together, step by step."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

import torch
from torch import Tensor

from inazuma.ops.pool import PAGE
from inazuma.serve.pages import Pages
from inazuma.serve.request import Busy, Done, Request, Token
from inazuma.serve.runner import Output, Piece, Runner
from inazuma.serve.sampler import prompt_logprobs
from inazuma.serve.scheduler import Scheduler, Text

log = logging.getLogger("inazuma.serve")

DRAFTING = 4
"""Texts that are guessed ahead for at most: for many texts the guesses that are wrong cost more than the right ones
save, as what a step does is no longer limited by reading the weights."""


class Stream:
    """The events of one request, in the event loop that submitted it."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[list[Token] | Done] = asyncio.Queue()
        self._over = False
        self.text: Text | None = None

    def deliver(self, event: list[Token] | Done) -> None:
        """From the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop was closed: nobody listens any more
            self.cancel()

    def cancel(self) -> None:
        self._engine.cancel(self.text)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Token] | Done:
        if self._over:
            raise StopAsyncIteration
        event = await self._events.get()
        self._over = isinstance(event, Done)
        return event


class Engine:
    """Serves requests with one model; see `inazuma.serve.request.Engine`."""

    def __init__(self, runner: Runner, *, most_running: int = 64, most_waiting: int = 256):
        self.context = runner.context
        self._runner = runner
        self._pages = Pages(runner.pages)
        self._scheduler = Scheduler(
            self._pages,
            runner.context,
            most_running=most_running,
            most_waiting=most_waiting,
            fixed_s=runner.fixed_seconds(),
        )
        self._wake = threading.Condition()
        self._arrivals: deque[Text] = deque()
        self._cancelled: deque[Text] = deque()
        self._closing = self._stopped = False
        self._counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Stream:
        with self._wake:
            if self._closing:
                raise Busy("the server is shutting down", 5.0)
            self._scheduler.check(request, len(self._arrivals) + len(self._scheduler.waiting))
            stream = Stream(self)
            stream.text = Text(request, self._runner.config.vocab_size, stream.deliver)
            self._arrivals.append(stream.text)
            self._wake.notify()
        return stream

    def cancel(self, text: Text) -> None:
        """Ends a text before the next step."""
        with self._wake:
            self._cancelled.append(text)
            self._wake.notify()

    def metrics(self) -> dict[str, float]:
        pages, scheduler = self._pages, self._scheduler
        names = ("prompt_tokens", "cached_prompt_tokens", "new_tokens", "drafted_tokens", "accepted_tokens", "steps")
        ends = ("requests_stop", "requests_length", "requests_cancelled", "requests_failed")
        return {
            "requests_running": len(scheduler.running),
            "requests_waiting": len(scheduler.waiting) + len(self._arrivals),
            "cache_tokens_used": (pages.total - pages.available) * PAGE,
            "cache_tokens_total": pages.total * PAGE,
            **{name: self._counts[name] for name in (*names, *ends)},
        }

    def close(self, grace: float) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(grace)
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    # ------------------------------------------------------------------------------------------------------------------
    # The engine's thread
    # ------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        scheduler = self._scheduler
        while True:
            with self._wake:
                idle = not scheduler.running and not scheduler.waiting
                while idle and not self._arrivals and not self._cancelled and not self._closing and not self._stopped:
                    self._wake.wait()
                scheduler.waiting.extend(self._arrivals)
                self._arrivals.clear()
                cancelled, stopped = list(self._cancelled), self._stopped
                self._cancelled.clear()
            if stopped:
                cancelled = [*scheduler.running, *scheduler.waiting]
            for text in cancelled:
                if text in scheduler.running or text in scheduler.waiting:
                    self._end(text, "cancelled")
            if not scheduler.running and not scheduler.waiting and self._closing:
                return
            chosen: list[tuple[Text, int]] = []
            try:
                chosen = scheduler.next()
                if chosen:
                    self._step(chosen)
            except Exception as error:  # whatever it was, it must not take the server down
                log.exception("a step failed")
                # Where not even the choice of texts was made, any of them may be the cause.
                concerned = [text for text, _ in chosen] or [*scheduler.running, *scheduler.waiting]
                for text in concerned:
                    if text in scheduler.running or text in scheduler.waiting:
                        self._end(text, "failed", f"{type(error).__name__}: {error}")

    def _step(self, chosen: Sequence[tuple[Text, int]]) -> None:
        started = time.perf_counter()
        pieces = []
        for text, count in chosen:
            known = text.tokens[text.read : text.read + count]
            ends = text.read + count == len(text.tokens)
            drafts = [text.draft] if ends and text.draft is not None else []
            pieces.append(
                Piece(
                    [*known, *drafts],
                    text.read,
                    text.pages,
                    logits=self._wanted(text, count, ends) + len(drafts),
                    observe=ends and text.request.selection,
                )
            )
        output = self._runner.step(pieces)
        self._counts["steps"] += 1
        writing = sum(text.writes for text, _ in chosen)
        ended = self._take_in(chosen, pieces, output)
        if self._runner.predicts:
            self._draft(chosen, pieces, output.hidden_NE, ended)
        self._scheduler.learn(chosen, writing, time.perf_counter() - started)
        for text, reason, options in ended:
            self._end(text, reason, **options)

    @staticmethod
    def _wanted(text: Text, count: int, ends: bool) -> int:
        """How many of the piece's last tokens' logits are needed, but for guesses'."""
        request = text.request
        if request.prompt_logprobs is not None and not text.new:
            return count
        return 1 if ends and request.max_tokens else 0

    def _take_in(self, chosen: Sequence[tuple[Text, int]], pieces: Sequence[Piece], output: Output) -> list:
        """Draws the next tokens and hands them out; returns the texts that have ended, and how."""
        ended, rows_seen, tokens_seen, selections = [], 0, 0, iter(output.selections)
        logits = output.logits.cpu()
        for (text, count), piece in zip(chosen, pieces, strict=True):
            request = text.request
            rows = logits[rows_seen : rows_seen + piece.logits]
            hidden = output.hidden_NE[tokens_seen : tokens_seen + len(piece.tokens)]
            rows_seen, tokens_seen = rows_seen + piece.logits, tokens_seen + len(piece.tokens)
            options = {"selection": tuple(next(selections))} if piece.observe else {}
            if not text.new:
                self._observe_prompt(text, count, rows, hidden)
            ends = text.read + count == len(text.tokens)
            if not ends:
                self._scheduler.advance(text, count)
                continue
            if not request.max_tokens:
                self._scheduler.advance(text, count)
                ended.append((text, "length", options))
                continue
            guesses = piece.tokens[count:]
            reason = self._write(text, count, rows[-1 - len(guesses) :], guesses)
            if reason is not None:
                ended.append((text, reason, options))
        return ended

    def _write(self, text: Text, count: int, rows: Tensor, guesses: Sequence[int]) -> str | None:
        """Draws the token after the piece, and while guesses are right the ones after them. Why the text ends, if."""
        events, reason = [], None
        for row, guess in zip(rows, [*guesses, None], strict=True):
            token = text.sampler.draw(row, text.new)
            text.sampler.accept(token.id)
            text.tokens.append(token.id)
            events.append(token)
            right = guess == token.id
            text.drafted += guess is not None
            text.accepted += right
            if token.id in text.request.stop_ids:
                reason = "stop"
            elif text.new == text.request.max_tokens:
                reason = "length"
            if reason is not None or not right:
                break
        text.draft = None
        if text.first_token is None:
            text.first_token = time.monotonic()
        self._scheduler.advance(text, count + len(events) - 1)
        text.deliver(events)
        return reason

    @staticmethod
    def _observe_prompt(text: Text, count: int, rows: Tensor, hidden: Tensor) -> None:
        request = text.request
        if request.prompt_logprobs is not None:
            first = max(request.prompt_logprobs_start - 1, text.read)
            following = request.prompt[first + 1 : text.read + count + 1]
            wanted = rows[first - text.read : first - text.read + len(following)]
            text.prompt_logprobs.extend(prompt_logprobs(wanted, following, request.prompt_logprobs))
        if request.hidden:
            total = hidden[:count].double().sum(0)
            text.hidden = total if text.hidden is None else text.hidden + total

    def _draft(
        self, chosen: Sequence[tuple[Text, int]], pieces: Sequence[Piece], hidden_NE: Tensor, ended: list
    ) -> None:
        """Lets the layer for multi-token prediction read what was read, and guess where texts are being written."""
        over = {id(text) for text, *_ in ended}
        guessing = sum(text.writes for text in self._scheduler.running) <= DRAFTING
        following, kept, tokens_seen, drafting = [], [], 0, []
        for (text, _), piece in zip(chosen, pieces, strict=True):
            start, tokens_seen = tokens_seen, tokens_seen + len(piece.tokens)
            if id(text) in over:
                continue
            tokens = text.tokens[piece.start + 1 : text.read + 1]
            guesses = guessing and text.writes and text.request.mask is None
            guesses &= text.request.max_tokens - text.new > 1
            following.append(Piece(tokens, piece.start, text.pages, logits=int(guesses)))
            kept.extend(range(start, start + len(tokens)))
            if guesses:
                drafting.append(text)
        if not following:
            return
        logits = self._runner.predict(following, hidden_NE[torch.tensor(kept, device=hidden_NE.device)]).cpu()
        for text, row in zip(drafting, logits, strict=True):
            text.draft = text.sampler.draw(row, text.new).id

    def _end(self, text: Text, reason: str, error: str = "", selection: tuple = ()) -> None:
        self._scheduler.remove(text)
        request, now = text.request, time.monotonic()
        prompt: list[Token] = text.prompt_logprobs
        if request.prompt_logprobs is not None and request.prompt_logprobs_start == 0 and request.prompt:
            prompt = [Token(request.prompt[0]), *prompt]
        done = Done(
            reason=reason,
            prompt_tokens=len(request.prompt),
            cached_tokens=text.cached,
            new_tokens=text.new,
            drafted=text.drafted,
            accepted=text.accepted,
            prompt=tuple(prompt),
            hidden=None if text.hidden is None else (text.hidden / len(request.prompt)).float().cpu(),
            selection=selection,
            error=error,
            first_token_s=None if text.first_token is None else text.first_token - text.arrived,
            total_s=now - text.arrived,
        )
        counts = {
            "prompt_tokens": done.prompt_tokens,
            "cached_prompt_tokens": done.cached_tokens,
            "new_tokens": done.new_tokens,
            "drafted_tokens": done.drafted,
            "accepted_tokens": done.accepted,
            f"requests_{reason}": 1,
        }
        self._counts.update(counts)
        text.deliver(done)
