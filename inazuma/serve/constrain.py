"""Grammars for answers: JSON schemas, regular expressions, choices, and a model's own format of tool calls.

A grammar says before each token which ones keep the text within it. llguidance (github.com/guidance-ai/llguidance)
computes that from the tokens' bytes, so that characters may be split between tokens in any way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer
from torch import Tensor

from inazuma.errors import RunError, UserError

LARGEST = 1 << 20
"""Characters of a schema or a grammar."""


class GrammarMask:
    """The tokens that a grammar allows next: `inazuma.serve.request.Mask`."""

    def __init__(self, matcher: LLMatcher, words: int):
        self._matcher, self._words = matcher, words

    def fill(self, bitmask: Tensor) -> None:
        """Raises `RunError` where the grammar turns out too large to go on with."""
        assert bitmask.is_contiguous() and bitmask.device.type == "cpu" and bitmask.element_size() == 4
        assert bitmask.numel() == self._words
        self._matcher.unsafe_compute_mask_ptr(bitmask.data_ptr(), 4 * self._words)
        if self._matcher.is_error():
            raise RunError(f"the answer's grammar cannot go on: {_line(self._matcher.get_error())}")

    def accept(self, token: int) -> bool:
        return self._matcher.try_consume_tokens([token]) == 1

    def fork(self) -> GrammarMask:
        return GrammarMask(self._matcher.deep_copy(), self._words)


class Grammars:
    """Makes the grammars of one model's tokenizer; to be made once, it reads the whole vocabulary.

    With `thinking`, a grammar's answer comes after reasoning: any text until `</think>` comes first.

    Args:
        vocab_size: The model's, of which the tokenizer's may be less; the rest is never allowed.
        stop_ids: The end-of-text tokens: allowed where the grammar may end.

    Raises:
        UserError: llguidance cannot read the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]):
        try:
            self._tokens = LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=sorted(stop_ids))
        except Exception as error:
            raise UserError(f"the tokenizer has no grammars: {_line(error)}") from None
        self._words = (vocab_size + 31) // 32
        self._limits = LLParserLimits(verbose_errors=False)

    def json_schema(self, schema: Mapping | bool, *, thinking: bool = False) -> GrammarMask:
        return self._mask({"json_schema": schema}, "json_schema", thinking)

    def json_object(self, *, thinking: bool = False) -> GrammarMask:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, thinking=thinking)

    def regex(self, pattern: str, *, thinking: bool = False) -> GrammarMask:
        """Texts that a regular expression (Rust's dialect, no look-around) matches as a whole."""
        return self._mask(json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0], "regex", thinking)

    def grammar(self, text: str, *, thinking: bool = False) -> GrammarMask:
        """Lark as llguidance reads it, or GBNF."""
        return self._mask({"lark_grammar": text}, "grammar", thinking)

    def choice(self, choices: Sequence[str], *, thinking: bool = False) -> GrammarMask:
        """One of several texts."""
        return self._mask({"lark_grammar": "start: " + " | ".join(map(json.dumps, choices))}, "choice", thinking)

    def tool_calls(
        self,
        tools: Sequence[Mapping],
        format: str,
        *,
        required_name: str | None = None,
        parallel: bool = True,
        thinking: bool = False,
    ) -> GrammarMask:
        """One call or, if `parallel`, several of the tools (of the one named), in the model's own format."""
        raise NotImplementedError

    def _mask(self, grammar: dict, what: str, thinking: bool) -> GrammarMask:
        if len(text := json.dumps({"grammars": [grammar]})) > LARGEST:
            raise UserError(f"{what}: {len(text):,} characters are too many, {LARGEST:,} at most")
        matcher = LLMatcher(self._tokens, text, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise UserError(f"{what}: {_line(matcher.get_error())}")
        return GrammarMask(matcher, self._words)


def _line(error: object) -> str:
    return " ".join(str(error).split())
