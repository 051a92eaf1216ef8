"""Messages into the prompt that a model was trained on: Hugging Face chat templates, and DeepSeek-V3.2's encoding."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.serve import deepseek_encoding
from inazuma.serve.sandbox import compile_template, variables

_END_MARK = "\ue000end of the final message\ue000"


class ChatTemplate:
    """How a model's messages become text.

    A model without a template (a base model) gets the contents of the messages, in order, with an empty line between
    them, and nothing else: no roles, no special tokens.

    A template without a place for tools gets them all the same, in a system message (`generic_tools`) that asks for the
    `hermes` format, or for DeepSeek's where the template writes earlier calls in it. A template that does not write
    earlier calls gets them and their results as contents.

    Args:
        source: The template in Jinja; None: there is none.
        with_tools: Another one for requests with tools (`tool_use` among named templates).
        tokens: Special tokens by name, `bos_token` and so on.
        encoding: `"deepseek_v32"`: that family's encoding, which is no template.
    """

    def __init__(
        self,
        source: str | None,
        *,
        with_tools: str | None = None,
        tokens: Mapping[str, str] | None = None,
        encoding: str | None = None,
    ):
        self.source, self.with_tools, self.tokens, self.encoding = source, with_tools, dict(tokens or {}), encoding
        self._asked: dict[str, bool] = {}

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate:
        """The template of a Hugging Face folder: `chat_template.jinja`, or `chat_template` in `tokenizer_config.json`
        (one, or several by name); DeepSeek-V3.2's own where there is none and the vocabulary is that model's.

        Raises:
            UserError: A file is unreadable.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        tokens = {name: _token_text(value) for name, value in config.items() if name.endswith("_token") and value}
        tokens = {name: text for name, text in tokens.items() if isinstance(text, str)}
        named = config.get("chat_template")
        named = {entry["name"]: entry["template"] for entry in named} if isinstance(named, list) else {"default": named}
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            named[path.stem] = path.read_text(encoding="utf-8")
        if (folder / "chat_template.jinja").is_file():
            named["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        source = named.get("default")
        encoding = None
        if source is None and deepseek_encoding.is_for(folder):
            encoding = "deepseek_v32"
        return cls(source, with_tools=named.get("tool_use"), tokens=tokens, encoding=encoding)

    def render(
        self,
        messages: Sequence[Mapping],
        tools: Sequence[Mapping] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt, special tokens included (encode it without adding any).

        Args:
            messages: As in OpenAI's chat completions; contents are text or lists of text parts (joined by newlines).
            tools: As in OpenAI's `tools`.
            add_generation_prompt: Whether the prompt ends where the answer begins.
            continue_final_message: Whether it ends within the last message, which the answer goes on with;
                `add_generation_prompt` does not count then.
            template_kwargs: Variables of the template (`enable_thinking` and others).

        Raises:
            UserError: A message is malformed or has a part that is not text; the template refuses the messages.
        """
        messages = [_message(message, i) for i, message in enumerate(messages)]
        if not messages:
            raise UserError("messages: there is none")
        if continue_final_message:
            if not messages[-1]["content"]:
                raise UserError(f"messages[{len(messages) - 1}]: there is no content to continue")
            add_generation_prompt = False
            messages[-1]["content"] += _END_MARK
        if not self.takes_tools:
            if "tool_calls" not in (self.source or ""):
                messages = _in_words(messages)
            if tools:
                messages, tools = _offered(messages, generic_tools(tools, self.detect())), None
        text = self._render(messages, tools, add_generation_prompt, template_kwargs)
        if continue_final_message:
            text, mark, _ = text.rpartition(_END_MARK)
            if not mark:
                raise UserError("continue_final_message: the chat template changes the last message's content")
        return text

    def _render(
        self, messages: list[dict], tools: Sequence[Mapping] | None, add_generation_prompt: bool, options: dict
    ) -> str:
        if self.encoding == "deepseek_v32":
            return deepseek_encoding.encode(messages, tools or (), add_generation_prompt, **options)
        source = self.with_tools if tools and self.with_tools else self.source
        if source is None:
            return "\n\n".join(message["content"] for message in messages)
        if "developer" not in source:
            messages = [
                message | {"role": "system"} if message["role"] == "developer" else message for message in messages
            ]
        if any("tool_calls" in message for message in messages) and self._wants_text(source):
            messages = [_with_arguments(message, _as_text) for message in messages]
        values = {"messages": messages, "tools": list(tools) if tools else None}
        values["add_generation_prompt"] = add_generation_prompt
        return compile_template(source)(**(self.tokens | values | options))

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template itself writes tools into the prompt."""
        if self.encoding or self.with_tools:
            return True
        return self.source is not None and "tools" in variables(self.source)

    @cached_property
    def thinks(self) -> bool:
        """Whether the template knows reasoning."""
        return self.encoding is not None or "</think>" in (self.with_tools or "") + (self.source or "")

    def detect(self) -> str | None:
        """The format of the model's tool calls, as `stream_parser` and `constrain` name it; None: one that they do not
        know."""
        if self.encoding:
            return self.encoding
        source = self.with_tools or self.source or ""
        if "<｜tool▁calls▁begin｜>" in source:
            return "deepseek_v3" if "```json" in source else "deepseek_v31"
        if not self.takes_tools:
            return "hermes"
        if "<arg_key>" in source:
            return "glm47" if "</arg_key><arg_value>" in source else "glm45"
        if "｜DSML｜" in source:
            return "deepseek_v32"
        # Qwen3-Coder and others write <function=name> between the same tags.
        return "hermes" if "<tool_call>" in source and "<function=" not in source else None

    def _wants_text(self, source: str) -> bool:
        """Whether a template takes the arguments of a call as JSON text and not as an object: it is tried."""
        if source not in self._asked:
            call = {"type": "function", "id": "call_000", "function": {"name": "f", "arguments": {"k": "v"}}}
            messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
            try:
                text = compile_template(source)(messages=messages, add_generation_prompt=False, **self.tokens)
                self._asked[source] = "{'k': 'v'}" in text
            except UserError:
                self._asked[source] = True
        return self._asked[source]


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt ends within reasoning: the template wrote `<think>`."""
    return prompt.rstrip().endswith("<think>")


_ASK = {
    "hermes": '<tool_call>\n{"name": "function name", "arguments": {"parameter": "value"}}\n</tool_call>',
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function name<｜tool▁sep｜>"
    '{"parameter": "value"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>function name\n"
    '```json\n{"parameter": "value"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
}


def generic_tools(tools: Sequence[Mapping], format: str | None = "hermes") -> str:
    """The system message that offers tools to a model whose template has no place for them, and asks for calls in a
    format."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = (
        "You can call these functions, each described by a line of JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write exactly this, with the arguments that the function's parameters describe:\n"
        f"{_ASK[format or 'hermes']}\n"
    )
    if format == "hermes":
        text += "Its result comes back in <tool_response></tool_response>. "
    return text + "Without need of a function, just answer."


def _offered(messages: list[dict], offer: str) -> list[dict]:
    """The messages with an offer of tools in the system message."""
    first = messages[0]
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": offer}, *messages]
    content = f"{first['content']}\n\n{offer}" if first["content"] else offer
    return [first | {"content": content}, *messages[1:]]


def _in_words(messages: list[dict]) -> list[dict]:
    """Calls and results as contents, for a template that knows neither."""
    written: list[dict] = []
    for i, message in enumerate(messages):
        text = [message["content"]] if message["content"] else []
        for call in message.get("tool_calls", ()):
            function = {name: call["function"][name] for name in ("name", "arguments")}
            text.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
        content = "\n".join(text)
        if message["role"] != "tool":
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            written.append(rest | {"content": content})
            continue
        result = f"<tool_response>\n{content}\n</tool_response>"
        if i and messages[i - 1]["role"] == "tool":
            written[-1]["content"] += "\n" + result
        else:
            written.append({"role": "user", "content": result})
    return written


def _token_text(token: Any) -> Any:
    return token.get("content") if isinstance(token, Mapping) else token


def _message(message: Mapping, index: int) -> dict:
    """A copy with its content as one text, the arguments of calls as objects, and nothing that is null."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{where}: has no role")
    message = {name: value for name, value in copy.deepcopy(dict(message)).items() if value is not None}
    message["content"] = _text(message.get("content", ""), f"{where}.content")
    # vLLM's and OpenAI's open models' name for what DeepSeek's API and the templates call reasoning_content.
    if "reasoning" in message:
        message.setdefault("reasoning_content", message["reasoning"])
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
        return message
    for j, call in enumerate(message["tool_calls"]):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f"{where}.tool_calls[{j}]: has no function name")
    return _with_arguments(message, lambda arguments, j: _object(arguments, f"{where}.tool_calls[{j}]"))


def _text(content: Any, where: str) -> str:
    """A content, text or a list of parts, as one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UserError(f"{where}: is neither text nor a list of parts")
    texts = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise UserError(f"{where}[{j}]: is a part of type {kind!r}; this model reads text only")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise UserError(f"{where}[{j}]: has no text")
        texts.append(text)
    return "\n".join(texts)


def _object(arguments: Any, where: str) -> Mapping:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments.strip() or "{}")
        except (ValueError, RecursionError):
            raise UserError(f"{where}.function.arguments: is not JSON") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}.function.arguments: is not a JSON object")
    return arguments


def _as_text(arguments: Any, index: int) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _with_arguments(message: dict, form: Callable[[Any, int], Any]) -> dict:
    """The message with its calls' arguments in another form."""
    calls = [
        call | {"function": call["function"] | {"arguments": form(call["function"].get("arguments"), j)}}
        for j, call in enumerate(message.get("tool_calls", ()))
    ]
    return message | {"tool_calls": calls} if calls else message
