"""The bodies that the completion endpoints take: every field that has a meaning here, and no other.

A field that is not listed is refused by name. What OpenAI's API has and what cannot change the text is accepted without
effect: `user`, `metadata`, `store`, `service_tier`, `safety_identifier`, `prompt_cache_key`, `prompt_cache_retention`,
`prompt_cache_options`, `modalities: ["text"]`, `verbosity: "medium"`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from inazuma.serve.errors import bad

JsonObject = dict[str, JsonValue]
MAX_CHOICES = 16
MAX_PROMPTS = 1024
MAX_STOPS = 16
MAX_BIAS = 1024
MAX_TOOLS = 128
MAX_TOP = 20


class Body(BaseModel):
    """Nothing unknown, no "1" for 1, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class StructuredOutputs(Body):
    """vLLM's way to say what the text must match: exactly one of them."""

    json_: JsonObject | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    grammar: str | None = None
    json_object: Literal[True] | None = None


class JsonSchema(Body):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: JsonObject | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Drawing(Body):
    """How tokens are drawn; what is absent comes from the model's generation_config.json."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIAS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token in bias or ():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError(f"keys are token ids, not {token!r}")
        return bias


class Writing(Drawing):
    """What completions and chats have in common."""

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonObject | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1, max_length=1024)] | None = None
    guided_grammar: str | None = None
    response_format: ResponseFormat | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def constraint(self) -> tuple[str, Any] | None:
        """What the text must match: `Grammars`' method and its argument. Raises `APIError` if it is said twice."""
        structured = self.structured_outputs
        given = {
            "json_schema": [self.guided_json, structured and structured.json_],
            "regex": [self.guided_regex, structured and structured.regex],
            "choice": [self.guided_choice, structured and structured.choice],
            "grammar": [self.guided_grammar, structured and structured.grammar],
            "json_object": [structured and structured.json_object],
        }
        form = self.response_format
        if isinstance(form, JsonObjectFormat):
            given["json_object"].append(True)
        elif isinstance(form, JsonSchemaFormat):
            given["json_schema"].append({} if form.json_schema.schema_ is None else form.json_schema.schema_)
        said = [(kind, value) for kind, values in given.items() for value in values if value is not None]
        if len(said) > 1:
            raise bad("response_format", "several forms of the answer are asked for; give one of them")
        if not said:
            if structured is not None:
                raise bad("structured_outputs", "structured_outputs: names no form")
            return None
        [(kind, value)] = said
        if kind == "json_schema" and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise bad("guided_json", "guided_json: the text is not JSON") from None
        return kind, value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Writing:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        return self


_NonEmpty = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = _NonEmpty | Annotated[list[_NonEmpty], Field(max_length=MAX_STOPS)] | None
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Prompts = (
    str
    | Ids
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
)
"""One or several texts, as text or as token ids."""


class CompletionBody(Writing):
    """`POST /v1/completions`"""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Default: 16, as OpenAI's."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _best_of(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: only the value of n is supported; nothing is written to be thrown away")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: str


class FunctionCall(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class Message(Body):
    """A message of any role; what clients echo of an answer that says nothing here must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _whole(self) -> Message:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content)):
            raise ValueError(f"content: a message of role {self.role} needs one")
        if self.role != "assistant" and self.tool_calls:
            raise ValueError("tool_calls: only an assistant's message has them")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: a tool's message names the call that it answers")
        return self

    def plain(self) -> dict[str, Any]:
        """As chat templates read it: the content one string."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        message: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump(exclude={"index"}) for call in self.tool_calls]
        reasoning = self.reasoning_content or self.reasoning
        for name, value in (
            ("name", self.name), ("tool_call_id", self.tool_call_id), ("reasoning_content", reasoning),
        ):  # fmt: skip
            if value is not None:
                message[name] = value
        return message


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatBody(Writing):
    """`POST /v1/chat/completions`"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """Default: generation_config.json's max_new_tokens, or what the context leaves."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # Accepted without effect; see above.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonObject | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise ValueError("continue_final_message goes without add_generation_prompt")
            if self.messages[-1].role != "assistant":
                raise ValueError("continue_final_message: the last message is not the assistant's")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) != len(names):
            raise ValueError("tools: two functions have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice: there are no tools to choose from")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: no tool is called {self.tool_choice.function.name}")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens: give one of them")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Writing.model_rebuild()
CompletionBody.model_rebuild()
