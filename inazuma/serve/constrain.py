"""Grammars for answers: JSON schemas, regular expressions, choices, grammars of one's own, a model's tool calls.

A grammar says before each token which ones keep the text within it. llguidance (github.com/guidance-ai/llguidance)
computes that from the tokens' bytes: a character may be split between tokens in any way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark
from tokenizers import Tokenizer
from torch import Tensor

from inazuma.errors import RunError, UserError
from inazuma.serve.tool_grammars import tool_call_grammar

LARGEST = 1 << 20
"""Characters of a schema or a grammar."""

_WHITE = r"[\x20\x0A\x0D\x09]{1,40}"
"""White space between JSON's parts: without a bound, weak models write nothing else."""
_OLD = ("divisibleBy", "disallow", "extends")
"""Words of old drafts that llguidance passes over; others that it does not know it names itself."""
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_VALUES = ("enum", "const", "default", "examples")


class GrammarMask:
    """The tokens that a grammar allows next: `inazuma.serve.request.Mask`."""

    def __init__(self, matcher: LLMatcher, words: int, stop_ids: frozenset[int]):
        self._matcher, self._words, self._stop_ids = matcher, words, stop_ids

    def fill(self, bitmask: Tensor) -> None:
        """Raises `RunError` where the grammar turns out too complex to go on with."""
        assert bitmask.device.type == "cpu" and bitmask.is_contiguous() and bitmask.element_size() == 4
        assert bitmask.numel() == self._words
        self._matcher.unsafe_compute_mask_ptr(bitmask.data_ptr(), 4 * self._words)
        if self._matcher.is_error():
            raise RunError(f"the answer's grammar cannot go on: {_line(self._matcher.get_error())}")

    def accept(self, token: int) -> bool:
        if self._matcher.try_consume_tokens([token]) == 1:
            return True
        # Where nothing but the end may come, llguidance has ended already.
        return token in self._stop_ids and self._matcher.is_stopped() and not self._matcher.is_error()

    def fork(self) -> GrammarMask:
        return GrammarMask(self._matcher.deep_copy(), self._words, self._stop_ids)


class Grammars:
    """Makes the grammars of one model's tokenizer. Made once: it reads the whole vocabulary (half a second for
    50,000 tokens). The methods take milliseconds, at most seconds; they may be called from any thread.

    With `thinking`, any text and `</think>` come before the answer, for prompts that end within reasoning.

    Args:
        vocab_size: The model's; what it has more than the tokenizer is never allowed.
        stop_ids: The end-of-text tokens: allowed where the grammar may end.

    Raises:
        UserError: llguidance cannot read the tokenizer. Of all methods: what is asked for is malformed, impossible, too
            large, or has a part that cannot be guaranteed, which the message names.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Iterable[int]):
        description = tokenizer.to_str()
        self._stop_ids = frozenset(stop_ids)
        try:
            self._tokens = LLTokenizer(description, n_vocab=vocab_size, eos_token=sorted(self._stop_ids))
        except Exception as error:
            raise UserError(f"grammars: this tokenizer cannot be read: {_line(error)}") from None
        added = json.loads(description)["added_tokens"]
        self._special = {token["content"]: token["id"] for token in added if token["special"]}
        self._words = (vocab_size + 31) // 32
        self._limits = LLParserLimits(verbose_errors=False)

    def json_schema(self, schema: Mapping | bool, *, thinking: bool = False) -> GrammarMask:
        """JSON that the schema (draft 2020-12, mostly) accepts, with its properties in the schema's order.

        `oneOf` is taken where at most one of its parts can hold; `format` is enforced. Words that say nothing about
        what is valid are passed over, as the standard says. Keys beyond the schema's `properties` may come twice.
        """
        _check_schema(schema, "json_schema")
        return self._mask({"json_schema": _with_spaces(schema)}, "json_schema", thinking)

    def json_object(self, *, thinking: bool = False) -> GrammarMask:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, thinking=thinking)

    def regex(self, pattern: str, *, thinking: bool = False) -> GrammarMask:
        """Texts that a regular expression (Rust's dialect, without look-around) matches from end to end."""
        return self._mask({"lark_grammar": f"start: {_regex(pattern)}"}, "regex", thinking)

    def grammar(self, text: str, *, thinking: bool = False) -> GrammarMask:
        """A grammar as Lark (llguidance's dialect) or llama.cpp's GBNF writes them."""
        try:
            lark = any_to_lark(text)
        except Exception as error:
            raise UserError(f"grammar: {_line(error)}") from None
        return self._mask({"lark_grammar": lark}, "grammar", thinking)

    def choice(self, choices: Sequence[str], *, thinking: bool = False) -> GrammarMask:
        """One of several texts."""
        if not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise UserError("choice: must be a list of texts that are not empty")
        lark = "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return self._mask({"lark_grammar": lark}, "choice", thinking)

    def tool_calls(
        self,
        tools: Sequence[Mapping],
        format: str | None,
        *,
        required_name: str | None = None,
        parallel: bool = True,
        thinking: bool = False,
    ) -> GrammarMask:
        """A call of one of the tools, or of the one named, and nothing else; if `parallel`, perhaps several.

        The text is in the model's own format (`ChatTemplate.detect`), and arguments fit the tools' schemas. Formats
        that give values as plain text (`glm45`, `glm47`, `deepseek_v32`) take parameters from `properties` only, in
        their order, if there are any.
        """
        if required_name is not None:
            named = [tool for tool in tools if tool["function"]["name"] == required_name]
            if not named:
                raise UserError(f"tool_choice: there is no tool {required_name!r}")
            tools = named
        if not tools:
            raise UserError("tool_choice: there are no tools")
        for tool in tools:
            parameters = tool["function"].get("parameters")
            if parameters is not None:
                _check_schema(parameters, f"tools: {tool['function']['name']}: parameters")
        lark = tool_call_grammar(tools, format, parallel, self._special)
        return self._mask({"lark_grammar": lark}, "tools", thinking)

    def _mask(self, grammar: dict, what: str, thinking: bool) -> GrammarMask:
        grammars = [grammar]
        if thinking:
            end = self._special.get("</think>")
            start = 'start: think "\\n"? "\\n"? @answer\n'
            start += r"think[lazy]: /(?s:.*)<\/think>/" if end is None else rf"think: /(?s:.*)/ <[{end}]>"
            grammars = [{"lark_grammar": start}, grammar | {"name": "answer"}]
        try:
            text = json.dumps({"grammars": grammars})
        except (RecursionError, ValueError, TypeError) as error:
            raise UserError(f"{what}: {_line(error)}") from None
        if len(text) > LARGEST:
            raise UserError(f"{what}: {len(text):,} characters are too many; {LARGEST:,} at most")
        matcher = LLMatcher(self._tokens, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise UserError(f"{what}: {_line(matcher.get_error())}")
        return GrammarMask(matcher, self._words, self._stop_ids)


def _check_schema(schema: Any, where: str) -> None:
    """Refuses what llguidance would pass over."""
    if not isinstance(schema, Mapping | bool):
        raise UserError(f"{where}: is not a JSON schema")
    if isinstance(schema, Mapping) and "x-guidance" in schema:
        raise UserError(f"{where}: 'x-guidance' is not supported")
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting.extend(part)
        if not isinstance(part, Mapping):
            continue
        for word, value in part.items():
            if word in _OLD:
                raise UserError(f"{where}: {word!r} is not supported")
            if word in _OF_NAMES and isinstance(value, Mapping):
                waiting.extend(value.values())
            elif word not in _OF_VALUES:
                waiting.append(value)


def _with_spaces(schema: Mapping | bool) -> Any:
    if isinstance(schema, bool):
        return {"x-guidance": {"whitespace_pattern": _WHITE}} if schema else False
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITE}}


def _regex(pattern: str) -> str:
    """A pattern as a terminal of Lark."""
    if not isinstance(pattern, str):
        raise UserError("regex: is not text")
    return "/" + regex_to_lark(pattern, "") + "/"


def _line(error: object) -> str:
    return " ".join(str(error).split())
