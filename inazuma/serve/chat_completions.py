"""`/v1/chat/completions`"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from inazuma.serve.request import Done
from inazuma.serve.running import DONE, STREAMED, EventStream, Run, data, merge, random_seed, seed_of_choice, usage
from inazuma.serve.schemas import ChatBody, NamedTool
from inazuma.serve.service import Call, respond
from inazuma.serve.stream_parser import Content, Reasoning, ToolStart
from inazuma.serve.turn import Turn
from inazuma.serve.writing import Said, chat_logprobs

router = APIRouter()


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """The assistant's next message, `n` times."""
    call = Call(request, body.model)
    seed = random_seed() if body.seed is None else body.seed
    # Templates, tokenizers and grammars may take their time; other requests go on.
    turn = await asyncio.to_thread(_turn, body, call)
    head = {
        "id": call.id("chatcmpl"),
        "created": call.created,
        "model": call.served.name,
        "system_fingerprint": call.served.fingerprint,
        "seed": seed,
    }
    requests = [turn.request(seed_of_choice(seed, choice)) for choice in range(body.n or 1)]
    if not body.stream:
        return await respond(call, _complete(body, call, turn, requests, head))
    async with AsyncExitStack() as stack:
        runs = [await stack.enter_async_context(call.run(one)) for one in requests]
        return EventStream(_events(body, call, turn, runs, head), stack.pop_all())


def _turn(body: ChatBody, call: Call) -> Turn:
    choice = body.tool_choice
    return Turn(
        call,
        body,
        messages=[message.plain() for message in body.messages],
        tools=[tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        tool_choice=choice.function.name if isinstance(choice, NamedTool) else choice or "auto",
        named=isinstance(choice, NamedTool),
        max_tokens=body.limit,
        stops=body.stops,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        parallel_calls=body.parallel_tool_calls is not False,
        effort=body.reasoning_effort,
        options=body.chat_template_kwargs or {},
        constraint=body.constraint(),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
    )


async def _complete(
    body: ChatBody, call: Call, turn: Turn, requests: list[Any], head: dict[str, Any]
) -> dict[str, Any]:
    async def one(index: int) -> tuple[dict[str, Any], Done, int]:
        content, reasoning, calls, logprobs = "", "", [], []
        async with call.slot, call.run(requests[index]) as run:
            async for said in turn.speak(run):
                logprobs += chat_logprobs(call.served.vocabulary, said.tokens) if body.logprobs else []
                for delta in said.deltas:
                    if isinstance(delta, Content):
                        content += delta.text
                    elif isinstance(delta, Reasoning):
                        reasoning += delta.text
                    elif isinstance(delta, ToolStart):
                        calls.append(_call(delta.id, delta.name, ""))
                    else:
                        calls[delta.index]["function"]["arguments"] += delta.fragment
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
        if reasoning:
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        if calls:
            message["tool_calls"] = calls
        answer = {
            "index": index,
            "message": message,
            "logprobs": {"content": logprobs, "refusal": None} if body.logprobs else None,
            "finish_reason": turn.finish_reason(run, bool(calls)),
        }
        return answer, run.done, run.new_tokens

    answered = await asyncio.gather(*map(one, range(len(requests))))
    return head | {
        "object": "chat.completion",
        "choices": [answer for answer, _, _ in answered],
        "usage": usage([answered[0][1]], sum(new for _, _, new in answered), call.record),
    }


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


async def _events(
    body: ChatBody, call: Call, turn: Turn, runs: list[Run], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    head = head | {"object": "chat.completion.chunk"}
    every = head | ({"usage": None} if with_usage else {})

    def chunk(index: int, delta: dict[str, Any], logprobs: list | None = None, reason: str | None = None) -> bytes:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}
        return data(every | {"choices": [choice]})

    async def one(index: int, run: Run) -> AsyncIterator[bytes]:
        yield chunk(index, {"role": "assistant", "content": ""})
        called = False
        async for said in turn.speak(run):
            called = called or any(isinstance(delta, ToolStart) for delta in said.deltas)
            logprobs = chat_logprobs(call.served.vocabulary, said.tokens) if body.logprobs else None
            for delta in _deltas(said):
                yield chunk(index, delta, logprobs)
                logprobs = None
            if logprobs:  # of tokens that show nothing: markers
                yield chunk(index, {}, logprobs)
        yield chunk(index, {}, None, turn.finish_reason(run, called))

    async for event in merge([one(index, run) for index, run in enumerate(runs)]):
        yield event
    used = usage([runs[0].done], sum(run.new_tokens for run in runs), call.record)
    if with_usage:
        yield data(head | {"choices": [], "usage": used})
    yield DONE


def _deltas(said: Said) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    for delta in said.deltas:
        if isinstance(delta, Content):
            deltas.append({"content": delta.text})
        elif isinstance(delta, Reasoning):
            deltas.append({"reasoning_content": delta.text, "reasoning": delta.text})
        elif isinstance(delta, ToolStart):
            deltas.append({"tool_calls": [{"index": delta.index} | _call(delta.id, delta.name, "")]})
        else:
            deltas.append({"tool_calls": [{"index": delta.index, "function": {"arguments": delta.fragment}}]})
    return deltas
