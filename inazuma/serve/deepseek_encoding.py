"""DeepSeek-V3.2's messages as text: that family publishes its encoding as a program, not as a template.

The format is that of `encoding/encoding_dsv32.py` in huggingface.co/deepseek-ai/DeepSeek-V3.2 (MIT License). The model
was trained on the sentences of `_TOOLS`, which are therefore that program's, word for word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.files import read_json

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_THINK, _END_THINK = "<think>", "</think>"

_TOOLS = """## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the \
user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should \
use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types \
(numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. \
Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"""


def is_for(folder: Path) -> bool:
    """Whether a checkpoint without a chat template speaks this: its model type and its tokenizer's tokens say so. A
    model of that type with a vocabulary of its own does not."""
    config, tokenizer = folder / "config.json", folder / "tokenizer.json"
    if not config.is_file() or not tokenizer.is_file() or read_json(config).get("model_type") != "deepseek_v32":
        return False
    added = {token["content"] for token in read_json(tokenizer).get("added_tokens", ())}
    return {_USER, _ASSISTANT} <= added


def encode(messages: Sequence[Mapping], tools: Sequence[Mapping], add_generation_prompt: bool, **options: Any) -> str:
    """The prompt.

    Args:
        messages: With contents as text and calls' arguments as objects.
        options: `thinking` or `enable_thinking`: whether the answer begins with reasoning; by default not. Others are
            refused.

    Raises:
        UserError: An unknown option or role.
    """
    thinking = bool(options.pop("thinking", options.pop("enable_thinking", False)))
    if options:
        raise UserError(f"chat template: DeepSeek-V3.2 knows no {', '.join(sorted(options))}; it knows thinking")
    if tools and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": ""}, *messages]
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    text = [_BEGIN]
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"]
        following = messages[i + 1]["role"] if i + 1 < len(messages) else None
        think = _THINK if thinking and i >= last_user else _END_THINK
        if role in ("system", "developer"):
            text.append(content)
            if tools and i == 0:
                listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
                text.append(f"\n\n{_TOOLS}{listed}\n</functions>\n")
        elif role == "user":
            text.append(_USER + content)
            if following or add_generation_prompt:
                text.append(_ASSISTANT + think)
        elif role == "assistant":
            # Reasoning before the last question is left out: its place was closed there.
            if thinking and i > last_user:
                text.append((message.get("reasoning_content") or "") + _END_THINK)
            text.append(content + _calls(message.get("tool_calls") or ()) + _END)
        elif role == "tool":
            first = i == 0 or messages[i - 1]["role"] != "tool"
            text.append("\n\n<function_results>" * first + f"\n<result>{content}</result>")
            if following != "tool":
                text.append("\n</function_results>")
                if following or add_generation_prompt:
                    text.append("\n\n" + think)
        else:
            raise UserError(f"messages[{i}]: role {role!r} is unknown; there are system, user, assistant and tool")
    return "".join(text)


def _calls(calls: Sequence[Mapping]) -> str:
    if not calls:
        return ""
    text = "\n\n<｜DSML｜function_calls>\n"
    for call in calls:
        parameters = "\n".join(
            f'<｜DSML｜parameter name="{name}" string="{"true" if isinstance(value, str) else "false"}">'
            f"{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}</｜DSML｜parameter>"
            for name, value in call["function"]["arguments"].items()
        )
        text += f'<｜DSML｜invoke name="{call["function"]["name"]}">\n{parameters}\n</｜DSML｜invoke>\n'
    return text + "</｜DSML｜function_calls>"
