"""`/v1/responses`: a turn of a conversation as items, whose past the client sends or the server remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from inazuma.serve.errors import error_of
from inazuma.serve.response_items import ResponsesBody, Store, Stored, messages_of
from inazuma.serve.running import STREAMED, EventStream, Run, data, random_seed, seed_of_choice, usage
from inazuma.serve.schemas import JsonObject
from inazuma.serve.service import Call, respond
from inazuma.serve.stream_parser import Content, Delta, Reasoning, ToolStart
from inazuma.serve.turn import Turn
from inazuma.serve.writing import Placed, chat_logprobs

router = APIRouter()


@router.post("/v1/responses", responses=STREAMED)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """The model's next turn. With `store` (the default) it can be continued by `previous_response_id` while this
    server remembers it: the newest thousand are kept, in memory alone."""
    call = Call(request, body.model)
    store: Store = call.service.responses
    past: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        past = store.get(call.record.owner, body.previous_response_id, "previous_response_id").messages
    messages = past + messages_of(body.input)
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    seed = random_seed() if body.seed is None else body.seed
    with_logprobs = body.top_logprobs is not None or "message.output_text.logprobs" in (body.include or ())
    choice = body.tool_choice
    # Templates, tokenizers and grammars may take their time; other requests go on.
    turn = await asyncio.to_thread(
        Turn,
        call,
        body,
        messages=system + messages,
        tools=body.chat_tools(),
        tool_choice=choice if isinstance(choice, str) else choice.name if choice else "auto",
        named=choice is not None and not isinstance(choice, str),
        max_tokens=body.max_output_tokens,
        stops=(),
        logprobs=(body.top_logprobs or 0) if with_logprobs else None,
        parallel_calls=body.parallel_tool_calls is not False,
        effort=body.reasoning.effort if body.reasoning else None,
        options=body.chat_template_kwargs or {},
        constraint=body.constraint(),
    )
    answer = _Answer(body, call, turn, seed, with_logprobs)
    run_request = turn.request(seed_of_choice(seed, 0))

    def remember() -> None:
        if body.store is not False:
            store.put(call.record.owner, Stored(answer.body(), messages + answer.messages()))

    if not body.stream:

        async def work() -> dict[str, Any]:
            async with call.run(run_request) as run:
                async for _ in answer.events(run):
                    pass
            remember()
            return answer.body()

        return await respond(call, work())
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(call.run(run_request))

        async def events() -> AsyncIterator[bytes]:
            number = 0
            try:
                async for event in answer.events(run):
                    if event["type"] in ("response.completed", "response.incomplete"):
                        remember()
                    yield data(event | {"sequence_number": number}, event["type"])
                    number += 1
            except Exception as error:
                told = error_of(error).body()["error"]
                answer.fail(told["message"])
                failed = {"type": "response.failed", "response": answer.body(), "sequence_number": number}
                yield data(failed, "response.failed")

        return EventStream(events(), stack.pop_all())


@router.get("/v1/responses/{id}")
async def retrieve(id: str, request: Request) -> Response:
    """A response that is remembered."""
    request.app.state.service.ready()
    stored = request.app.state.service.responses.get(request.scope["record"].owner, id, "response_id")
    return JSONResponse(stored.body)


@router.delete("/v1/responses/{id}")
async def delete(id: str, request: Request) -> Response:
    """Forgets it."""
    request.app.state.service.ready()
    request.app.state.service.responses.delete(request.scope["record"].owner, id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


class _Answer:
    """A response as it grows: `events` drives it, `body` is what it is so far."""

    def __init__(self, body: ResponsesBody, call: Call, turn: Turn, seed: int, with_logprobs: bool):
        self._body, self._call, self._turn, self._seed = body, call, turn, seed
        self._with_logprobs = with_logprobs
        self._id = call.id("resp").replace("-", "_", 1)
        self._status = "in_progress"
        self._items: list[JsonObject] = []
        self._usage: dict[str, Any] | None = None
        self._error: str | None = None

    async def events(self, run: Run) -> AsyncIterator[dict[str, Any]]:
        """The events of the stream, without their numbers."""
        yield {"type": "response.created", "response": self.body()}
        yield {"type": "response.in_progress", "response": self.body()}
        async for said in self._turn.speak(run):
            tokens = said.tokens
            for delta in said.deltas:
                for event in self._take(delta, tokens):
                    yield event
                if isinstance(delta, Content):
                    tokens = []
        reason = self._turn.finish_reason(run, False)
        for event in self._close("incomplete" if reason == "length" else "completed"):
            yield event
        used = usage([run.done], run.new_tokens, self._call.record)
        self._usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens()},
            "total_tokens": used["total_tokens"],
        }
        self._status = "incomplete" if reason == "length" else "completed"
        yield {"type": f"response.{self._status}", "response": self.body()}

    def fail(self, message: str) -> None:
        self._status, self._error = "failed", message

    def body(self) -> dict[str, Any]:
        return self._body.echoed() | {
            "id": self._id,
            "object": "response",
            "created_at": self._call.created,
            "status": self._status,
            "background": False,
            "error": None if self._error is None else {"code": "server_error", "message": self._error},
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "model": self._call.served.name,
            "output": [dict(item) for item in self._items],
            "seed": self._seed,
            "temperature": self._turn.sampling.temperature,
            "top_p": self._turn.sampling.top_p,
            "usage": self._usage,
        }

    def _reasoning_tokens(self) -> int:
        """Counted anew from the text; the marks around it are not in it."""
        texts = [item["content"][0]["text"] for item in self._items if item["type"] == "reasoning"]
        return sum(len(self._call.served.encode(text, begin=False)) for text in texts)

    def messages(self) -> list[dict[str, Any]]:
        """The turn as a chat template reads it, for the next one."""
        return messages_of(self._items)

    # -- items -------------------------------------------------------------------------------------------------------

    def _take(self, delta: Delta, tokens: list[Placed]) -> list[dict[str, Any]]:
        kind = "message" if isinstance(delta, Content) else "reasoning" if isinstance(delta, Reasoning) else None
        events = []
        if isinstance(delta, ToolStart):
            events += self._close("completed")
            events += self._open(
                {"type": "function_call", "call_id": delta.id, "name": delta.name, "arguments": ""}, "fc"
            )
            return events
        if kind is None:
            item = self._items[-1]
            item["arguments"] += delta.fragment
            return [self._at("response.function_call_arguments.delta") | {"delta": delta.fragment}]
        if not self._items or self._items[-1]["type"] != kind or self._items[-1]["status"] != "in_progress":
            events += self._close("completed")
            events += self._open_text(kind)
        part = self._items[-1]["content"][0]
        part["text"] += delta.text
        place = {"content_index": 0, "delta": delta.text}
        if kind == "reasoning":
            return [*events, self._at("response.reasoning_text.delta") | place]
        logprobs = chat_logprobs(self._call.served.vocabulary, tokens) if self._with_logprobs else []
        part["logprobs"] += logprobs
        return [*events, self._at("response.output_text.delta") | place | {"logprobs": logprobs}]

    def _open(self, item: JsonObject, prefix: str) -> list[dict[str, Any]]:
        item |= {"id": self._call.id(prefix).replace("-", "_", 1), "status": "in_progress"}
        self._items.append(item)
        return [{"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": _copy(item)}]

    def _open_text(self, kind: str) -> list[dict[str, Any]]:
        if kind == "reasoning":
            item = {"type": "reasoning", "summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        else:
            item = {"type": "message", "role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = self._open(item, "rs" if kind == "reasoning" else "msg")
        events.append(self._at("response.content_part.added") | {"content_index": 0, "part": dict(part)})
        item["content"].append(part)
        return events

    def _close(self, status: str) -> list[dict[str, Any]]:
        """Ends the item that is open, if one is."""
        if not self._items or self._items[-1]["status"] != "in_progress":
            return []
        item = self._items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            events = [
                self._at("response.function_call_arguments.done")
                | {"arguments": item["arguments"], "name": item["name"]}
            ]
        else:
            part = item["content"][0]
            said = {"content_index": 0, "text": part["text"]}
            if item["type"] == "reasoning":
                events = [self._at("response.reasoning_text.done") | said]
            else:
                events = [self._at("response.output_text.done") | said | {"logprobs": part["logprobs"]}]
            events.append(self._at("response.content_part.done") | {"content_index": 0, "part": dict(part)})
        place = {"output_index": len(self._items) - 1, "item": _copy(item)}
        return [*events, {"type": "response.output_item.done"} | place]

    def _at(self, event: str) -> dict[str, Any]:
        return {"type": event, "item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}


def _copy(item: JsonObject) -> JsonObject:
    return item | ({"content": [dict(part) for part in item["content"]]} if "content" in item else {})
