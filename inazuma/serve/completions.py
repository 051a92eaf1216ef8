"""`/v1/completions`: texts continued, and scored (`echo` with `logprobs`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from inazuma.serve.errors import bad
from inazuma.serve.request import Done
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.running import DONE, STREAMED, EventStream, Run, data, merge, random_seed, seed_of_choice, usage
from inazuma.serve.schemas import MAX_CHOICES, CompletionBody
from inazuma.serve.service import Call, respond
from inazuma.serve.writing import Placed, Text, legacy_logprobs, write

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


class Choice(NamedTuple):
    index: int
    request: EngineRequest
    prompt_text: str


@router.post("/v1/completions", responses=STREAMED)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continues each prompt `n` times; the same seed gives the same texts, whatever else is asked for."""
    call = Call(request, body.model)
    if body.stream and body.echo and body.logprobs is not None:
        raise bad("echo", "echo with logprobs cannot be streamed")
    seed = random_seed() if body.seed is None else body.seed
    # Tokenizers and grammars may take their time; other requests go on.
    choices = await asyncio.to_thread(_choices, body, call, seed)
    head = {
        "id": call.id("cmpl"),
        "object": "text_completion",
        "created": call.created,
        "model": call.served.name,
        "system_fingerprint": call.served.fingerprint,
        "seed": seed,
    }
    if not body.stream:
        return await respond(call, _complete(body, call, choices, head))
    if len(choices) > MAX_CHOICES:
        raise bad("prompt", f"at most {MAX_CHOICES} texts can be streamed at once")
    async with AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(call.run(choice.request)) for choice in choices]
        return EventStream(_events(body, call, choices, runs, head), stack.pop_all())


def _choices(body: CompletionBody, call: Call, seed: int) -> list[Choice]:
    prompts = call.served.prompts(body.prompt, "prompt")
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    n, constraint = body.n or 1, body.constraint()
    mask = call.served.mask(*constraint) if constraint else None
    choices = []
    for place, prompt in enumerate(prompts):
        # Of a prompt that came as token ids the text is what they decode to.
        given = texts[place] if isinstance(texts[place], str) else call.served.tokenizer.decode(prompt)
        for choice in range(n):
            request = EngineRequest(
                prompt,
                DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
                call.served.sampling(body, seed_of_choice(seed, choice)),
                call.served.stop_ids,
                body.logprobs,
                body.logprobs if body.echo else None,
                mask=mask.fork() if mask else None,
            )
            choices.append(Choice(place * n + choice, request, given))
    return choices


def _text(body: CompletionBody, call: Call, offset: int) -> Text:
    return Text(call.served.vocabulary, stops=body.stops, stop_ids=call.served.stop_ids, keep_end=True, offset=offset)


async def _complete(body: CompletionBody, call: Call, choices: list[Choice], head: dict[str, Any]) -> dict[str, Any]:
    async def one(choice: Choice) -> tuple[dict[str, Any], Done, int]:
        offset = len(choice.prompt_text) if body.echo else 0
        pieces, tokens = [choice.prompt_text if body.echo else ""], []
        async with call.slot, call.run(choice.request) as run:
            async for piece, carried in write(run, _text(body, call, offset)):
                pieces.append(piece)
                tokens += carried
        if body.echo and body.logprobs is not None:
            tokens = [*_placed(call, run.done), *tokens]
        answer = {
            "index": choice.index,
            "text": "".join(pieces),
            "logprobs": None if body.logprobs is None else legacy_logprobs(call.served.vocabulary, tokens),
            "finish_reason": run.reason,
        }
        return answer, run.done, run.new_tokens

    answered = await asyncio.gather(*map(one, choices))
    return head | {
        "choices": [answer for answer, _, _ in answered],
        "usage": usage(
            [done for _, done, _ in answered[:: body.n or 1]], sum(new for _, _, new in answered), call.record
        ),
    }


def _placed(call: Call, done: Done) -> list[Placed]:
    """The prompt's tokens with their places in its text."""
    text = Text(call.served.vocabulary)
    _, carried = text.push(done.prompt)
    return [*carried, *text.finish()[1]]


async def _events(
    body: CompletionBody, call: Call, choices: list[Choice], runs: list[Run], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    every = head | ({"usage": None} if with_usage else {})

    def chunk(index: int, text: str, tokens: list[Placed], reason: str | None) -> bytes:
        logprobs = None if body.logprobs is None else legacy_logprobs(call.served.vocabulary, tokens)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return data(every | {"choices": [choice]})

    async def one(choice: Choice, run: Run) -> AsyncIterator[bytes]:
        offset = len(choice.prompt_text) if body.echo else 0
        if body.echo:
            yield chunk(choice.index, choice.prompt_text, [], None)
        async for piece, tokens in write(run, _text(body, call, offset)):
            if piece or tokens:
                yield chunk(choice.index, piece, tokens, None)
        yield chunk(choice.index, "", [], run.reason)

    async for event in merge([one(choice, run) for choice, run in zip(choices, runs, strict=True)]):
        yield event
    used = usage([run.done for run in runs[:: body.n or 1]], sum(run.new_tokens for run in runs), call.record)
    if with_usage:
        yield data(head | {"choices": [], "usage": used})
    yield DONE
