"""`/v1/embeddings`: the mean over a text's tokens of the model's last hidden states, after the last norm, scaled to
length 1.

It is what a language model has to offer without having been trained to embed: texts about the same things come near
each other, but a model trained for retrieval separates them better.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from inazuma.serve.errors import bad
from inazuma.serve.request import Done
from inazuma.serve.request import Request as EngineRequest
from inazuma.serve.schemas import Body, Prompts
from inazuma.serve.service import Call, respond

router = APIRouter()


class EmbeddingBody(Body):
    """`POST /v1/embeddings`"""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, request: Request) -> Response:
    """A vector of the model's hidden size for each text; `dimensions` can only be that size."""
    call = Call(request, body.model)
    return await respond(call, _embed(body, call))


async def _embed(body: EmbeddingBody, call: Call) -> dict[str, Any]:
    prompts = await asyncio.to_thread(call.served.prompts, body.input, "input")
    reads = await asyncio.gather(*(_read(call, prompt) for prompt in prompts))
    width = len(reads[0].hidden)
    if body.dimensions not in (None, width):
        raise bad("dimensions", f"dimensions: this model's vectors have {width} and cannot be shortened")
    call.record.prompt_tokens = sum(done.prompt_tokens for done in reads)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(done, body.encoding_format)}
            for index, done in enumerate(reads)
        ],
        "model": call.served.name,
        "usage": {"prompt_tokens": call.record.prompt_tokens, "total_tokens": call.record.prompt_tokens},
    }


async def _read(call: Call, prompt: list[int]) -> Done:
    async with call.slot, call.run(EngineRequest(prompt, 0, hidden=True)) as run:
        return await run.read()


def _vector(done: Done, encoding: str | None) -> list[float] | str:
    vector = done.hidden / done.hidden.norm().clamp(min=1e-12)
    if encoding == "base64":  # little-endian float32
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
