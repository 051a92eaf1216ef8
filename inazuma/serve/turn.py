"""The assistant's turn in a chat: from messages and tools to a request to the engine, and its answer taken apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inazuma.serve.errors import bad
from inazuma.serve.request import Mask
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.running import Run
from inazuma.serve.schemas import Drawing
from inazuma.serve.service import Call
from inazuma.serve.stream_parser import make_parser, markers
from inazuma.serve.template import opens_thinking
from inazuma.serve.writing import Said, Text, speak


class Turn:
    """What `/v1/chat/completions` and `/v1/responses` have in common.

    Args:
        body: the sampling.
        tools: as in OpenAI's chat completions.
        tool_choice: "none", "auto", "required", or a function's name where `named`.
        constraint: what the text must match (`schemas.constraint`).
        logprobs: how many likeliest tokens; None: no log-probabilities.
    """

    def __init__(
        self,
        call: Call,
        body: Drawing,
        *,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        tool_choice: str,
        named: bool,
        max_tokens: int | None,
        stops: Sequence[str],
        logprobs: int | None,
        parallel_calls: bool,
        effort: str | None,
        options: Mapping[str, Any],
        constraint: tuple[str, Any] | None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ):
        served = self._served = call.served
        self._stops, self._logprobs, self._parallel, self._body = stops, logprobs, parallel_calls, body
        self._tools = [] if tool_choice == "none" and not named else list(tools)
        self._format = served.template.detect()
        if self._tools and self._format is None:
            raise bad("tools", "tools: how this model calls tools is not known here")
        if effort is not None:
            options = served.effort(effort) | dict(options)
        text, self._prompt = served.chat(
            messages,
            self._tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            options=options,
        )
        self._opened = opens_thinking(text)
        self._thinks = self._opened or (served.template.thinks and not text.rstrip().endswith("</think>"))
        self._limit = served.room(self._prompt, max_tokens)
        self.sampling = served.sampling(body, 0)
        self._mask = self._make_mask(tool_choice, named, constraint)

    def _make_mask(self, tool_choice: str, named: bool, constraint: tuple[str, Any] | None) -> Mask | None:
        served, thinking = self._served, self._thinks
        must_call = named or tool_choice == "required"
        if must_call and constraint:
            raise bad("tool_choice", "tool_choice: an answer that must be a call cannot have another form too")
        text = served.mask(*constraint, thinking=thinking) if constraint else None
        if not self._tools or not (must_call or constraint):
            return text
        calls = served.grammars.tool_calls(
            self._tools,
            self._format,
            required_name=tool_choice if named else None,
            parallel=self._parallel,
            thinking=thinking,
        )
        return calls if must_call else Either([text, calls])

    def request(self, seed: int) -> EngineRequest:
        """One answer."""
        return EngineRequest(
            list(self._prompt),
            self._limit,
            self._served.sampling(self._body, seed),
            self._served.stop_ids,
            self._logprobs,
            mask=self._mask.fork() if self._mask else None,
        )

    def speak(self, run: Run) -> AsyncIterator[Said]:
        """The answer of one such request."""
        text = Text(
            self._served.vocabulary,
            stops=self._stops,
            stop_ids=self._served.stop_ids,
            # The marks around calls and reasoning may be special tokens.
            keep=markers(self._format) if self._tools or self._thinks else (),
        )
        parser = make_parser(self._format, tools=self._tools, thinking=self._opened)
        return speak(run, text, parser, parallel_calls=self._parallel)

    @staticmethod
    def finish_reason(run: Run, called: bool) -> str:
        return "tool_calls" if called and run.reason == "stop" else run.reason


class Either:
    """A text that any of several grammars allows: `inazuma.serve.request.Mask`. Those that a token contradicts drop
    out."""

    def __init__(self, masks: Sequence[Mask]):
        self._masks = list(masks)

    def fill(self, bitmask: Tensor) -> None:
        self._masks[0].fill(bitmask)
        other = torch.empty_like(bitmask)
        for mask in self._masks[1:]:
            mask.fill(other)
            bitmask |= other

    def accept(self, token: int) -> bool:
        alive = [mask for mask in self._masks if mask.accept(token)]
        self._masks = alive or self._masks
        return bool(alive)

    def fork(self) -> Either:
        return Either([mask.fork() for mask in self._masks])
