"""The items of `/v1/responses`, as chat messages, and the responses that the server remembers."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, TypeAdapter, model_validator

from inazuma.serve.errors import APIError
from inazuma.serve.schemas import MAX_TOOLS, MAX_TOP, Body, Drawing, Function, JsonObject


class Part(Body):
    """Text; what answers have beside it (annotations, log-probabilities) says nothing to a model."""

    type: Literal["input_text", "output_text", "refusal", "summary_text", "reasoning_text", "text"]
    text: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None

    @model_validator(mode="after")
    def _has_text(self) -> Part:
        if (self.text is None) == (self.refusal is None):
            raise ValueError("a part has a text")
        return self


_Status = Literal["in_progress", "completed", "incomplete"] | None


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: str | None = None
    status: _Status = None
    phase: str | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status = None


class OutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = None
    status: _Status = None


class ReasoningItem(Body):
    type: Literal["reasoning"]
    summary: list[Part] = Field(default_factory=list)
    content: list[Part] | None = None
    encrypted_content: None = None
    id: str | None = None
    status: _Status = None


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "")
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]
_ITEMS = TypeAdapter(list[Item])


class FunctionTool(Function):
    type: Literal["function"]


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class Text(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Body):
    format: Annotated[Text | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Accepted; reasoning comes whole, not summarised."""


class StreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponsesBody(Drawing):
    """`POST /v1/responses`"""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    chat_template_kwargs: JsonObject | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    """Reasoning comes as plain `content` that can be sent back; `encrypted_content` stays null."""
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    # Accepted without effect; see `schemas`.
    metadata: dict[str, str] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonObject | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ResponsesBody:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) != len(names):
            raise ValueError("tools: two functions have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice: there are no tools to choose from")
        if isinstance(self.tool_choice, NamedFunction) and self.tool_choice.name not in names:
            raise ValueError(f"tool_choice: no tool is called {self.tool_choice.name}")
        return self

    def constraint(self) -> tuple[str, Any] | None:
        """What the text must match; see `schemas.Writing.constraint`."""
        form = self.text.format if self.text else None
        if isinstance(form, JsonObjectFormat):
            return "json_object", None
        return ("json_schema", form.schema_) if isinstance(form, JsonSchemaFormat) else None

    def echoed(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        form = self.text.format if self.text else None
        choice = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": self.reasoning.effort if self.reasoning else None, "summary": None},
            "store": self.store is not False,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}, "verbosity": "medium"},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "truncation": "disabled",
            "user": self.user,
        }

    def chat_tools(self) -> list[dict[str, Any]]:
        """The tools as in chat completions."""
        return [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in self.tools or ()
        ]


def messages_of(items: str | Sequence[Item] | list[JsonObject]) -> list[dict[str, Any]]:
    """Items as a chat's messages: reasoning and calls join the assistant's message that they belong to."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    if items and isinstance(items[0], dict):
        items = _ITEMS.validate_python(items)
    messages: list[dict[str, Any]] = []

    def assistant() -> dict[str, Any]:
        """The message of the assistant's turn that is under way."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        return messages[-1]

    for item in items:
        if isinstance(item, ReasoningItem):
            text = _text(item.content or item.summary)
            if text:
                messages.append({"role": "assistant", "content": "", "reasoning_content": text})
        elif isinstance(item, CallItem):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            assistant().setdefault("tool_calls", []).append(call)
        elif isinstance(item, OutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif item.role == "assistant" and messages and _waits(messages[-1]):
            messages[-1]["content"] = _text(item.content)
        else:
            messages.append({"role": item.role, "content": _text(item.content)})
    return messages


def _waits(message: dict[str, Any]) -> bool:
    """Whether a message is reasoning whose text is still to come."""
    return message["role"] == "assistant" and not message["content"] and "tool_calls" not in message


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text or part.refusal or "" for part in content)


@dataclass(frozen=True)
class Stored:
    """A response, and the conversation that it ends."""

    body: dict[str, Any]
    messages: list[dict[str, Any]]


class Store:
    """The newest responses, in memory: at most `count`, and at most `size` characters in all. Whoever has another API
    key does not see them."""

    def __init__(self, count: int = 1000, size: int = 64 << 20):
        self._count, self._size, self._used = count, size, 0
        self._stored: OrderedDict[tuple[str, str], tuple[Stored, int]] = OrderedDict()

    def put(self, owner: str, stored: Stored) -> None:
        size = len(json.dumps([stored.body, stored.messages]))
        self._stored[owner, stored.body["id"]] = (stored, size)
        self._used += size
        while len(self._stored) > self._count or self._used > self._size:
            _, (_, size) = self._stored.popitem(last=False)
            self._used -= size

    def get(self, owner: str, id: str, param: str) -> Stored:
        """Raises `APIError` 404 if it is not there (any more)."""
        if (owner, id) not in self._stored:
            raise APIError(404, f"there is no response {id!r} in this server's memory", param=param, code="not_found")
        return self._stored[owner, id][0]

    def delete(self, owner: str, id: str) -> None:
        self.get(owner, id, "response_id")
        _, size = self._stored.pop((owner, id))
        self._used -= size
