"""Texts as the model sees them: `/tokenize`, `/detokenize`, and which tokens the indexers select."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import JSONResponse, Response

from inazuma.serve.errors import bad
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.schemas import MAX_TOOLS, Body, Ids, JsonObject, Message, Tool
from inazuma.serve.served import Served
from inazuma.serve.service import Call, respond

router = APIRouter()


class TokenizeBody(Body):
    """`POST /tokenize`: a prompt, or messages as a chat would put them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`"""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 20)]


class SelectionBody(Body):
    """`POST /inazuma/selection`: a text, and a token of it (default: the last one)."""

    model: str | None = None
    prompt: str | None = None
    tokens: Ids | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    position: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one(self) -> SelectionBody:
        if sum(given is not None for given in (self.prompt, self.tokens, self.messages)) != 1:
            raise ValueError("give one of prompt, tokens and messages")
        return self


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Token ids of a prompt, or of messages in the model's chat template."""
    return JSONResponse(await asyncio.to_thread(_tokenize, body, Call(request, body.model).served))


def _tokenize(body: TokenizeBody, served: Served) -> dict[str, Any]:
    if body.messages is not None:
        _, ids = served.chat(
            [message.plain() for message in body.messages],
            [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=bool(body.continue_final_message),
            options=body.chat_template_kwargs or {},
        )
    else:
        ids = served.encode(body.prompt, begin=body.add_special_tokens is not False)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": served.engine.context, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [served.token_text(token) for token in ids]
    return answer


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of token ids, special ones as they are spelled."""
    served = Call(request, body.model).served
    served.check_ids(body.tokens, "tokens")
    return JSONResponse({"prompt": served.tokenizer.decode(body.tokens, skip_special_tokens=False)})


@router.post("/inazuma/selection")
async def selection(body: SelectionBody, request: Request) -> Response:
    """What each layer's indexer selects for one token: the positions that its attention reads; null for a layer that
    reads all. `counts` says of each position how many layers selected it."""
    call = Call(request, body.model)
    if body.messages is not None:
        _, ids = call.served.chat([message.plain() for message in body.messages])
    else:
        [ids] = call.served.prompts(body.prompt if body.tokens is None else body.tokens, "tokens")
    position = len(ids) - 1 if body.position is None else body.position
    if position >= len(ids):
        raise bad("position", f"position: the text has {len(ids)} tokens, counted from 0")
    return await respond(call, _select(call, ids, position))


async def _select(call: Call, ids: list[int], position: int) -> dict[str, Any]:
    async with call.run(EngineRequest(ids[: position + 1], 0, selection=True)) as run:
        done = await run.read()
    call.record.prompt_tokens = done.prompt_tokens
    counts = [0] * (position + 1)
    for selected in done.selection:
        for place in selected or ():
            counts[place] += 1
    return {
        "tokens": [{"id": token, "text": call.served.token_text(token)} for token in ids],
        "position": position,
        "layers": [None if selected is None else list(selected) for selected in done.selection],
        "counts": counts,
    }
