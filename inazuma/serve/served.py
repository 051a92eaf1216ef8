"""A model as the API knows it: its engine, its name, and what its folder says of texts, chats and sampling."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import inazuma
from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.model import ModelConfig
from inazuma.model.checkpoint import read_config
from inazuma.serve.constrain import Grammars
from inazuma.serve.detokenize import Vocabulary
from inazuma.serve.errors import bad
from inazuma.serve.request import Engine, Mask, Sampling, TooLong
from inazuma.serve.sandbox import variables
from inazuma.serve.schemas import Drawing
from inazuma.serve.template import ChatTemplate

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What generation_config.json may say of sampling."""
_EFFORT = ("reasoning_effort", "enable_thinking", "thinking")
"""Names that templates give to how much is to be thought."""


@dataclass(frozen=True)
class Served:
    """Made once; several threads may read it."""

    name: str
    engine: Engine
    config: ModelConfig
    tokenizer: Tokenizer
    """Reads special tokens where their names stand: for what a chat template wrote."""
    plain: Tokenizer
    """Reads them as text: for what people wrote."""
    template: ChatTemplate
    defaults: Sampling
    max_new_tokens: int | None
    stop_ids: frozenset[int]
    decision_temperature: float
    fingerprint: str

    @classmethod
    def read(cls, folder: Path, name: str, engine: Engine) -> Served:
        """Of a model folder whose model runs in `engine`.

        Raises:
            UserError: the folder has no tokenizer, or a file in it is malformed.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: has no tokenizer.json; the API needs one")
        tokenizer, plain = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(path))
        for one in (tokenizer, plain):
            one.no_truncation()
            one.no_padding()
        plain.encode_special_tokens = True
        config, _ = read_config(folder)
        path = folder / "generation_config.json"
        generation = read_json(path) if path.is_file() else {}
        ends = generation.get("eos_token_id")
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        served = cls(
            name=name,
            engine=engine,
            config=config,
            tokenizer=tokenizer,
            plain=plain,
            template=ChatTemplate.load(folder),
            defaults=_defaults(generation, path),
            max_new_tokens=generation.get("max_new_tokens"),
            stop_ids=config.stop_ids | frozenset(ends),
            decision_temperature=_decision_temperature(folder),
            fingerprint=_fingerprint(folder),
        )
        _ = served.vocabulary  # made here, where nobody waits
        return served

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    @cached_property
    def grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.config.vocab_size, sorted(self.stop_ids))

    @property
    def is_base(self) -> bool:
        """Whether the model has no chat template."""
        return self.template.source is None and self.template.encoding is None

    def token_text(self, token: int) -> str:
        return self.vocabulary.token_text(token)

    # -- prompts -----------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """A text's ids; `begin`: after the model's beginning-of-text token, if it has one."""
        first = [self.config.bos_token_id] if begin and self.config.bos_token_id is not None else []
        return first + self.plain.encode(text, add_special_tokens=False).ids

    def prompts(self, given: str | list, param: str) -> list[list[int]]:
        """The prompts of a request: one or several, as text or as ids.

        Raises:
            APIError: an empty prompt, or an id that is none.
        """
        several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        prompts = [self.encode(one) if isinstance(one, str) else one for one in several]
        for prompt in prompts:
            if not prompt:
                raise bad(param, f"{param}: an empty prompt, and the model has no token to begin with")
            self.check_ids(prompt, param)
        return prompts

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        if ids and max(ids) >= self.config.vocab_size:
            raise bad(param, f"{param}: token ids lie below {self.config.vocab_size}")

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[int]]:
        """Messages as the model's template writes them: the text and its ids.

        Raises:
            APIError: an option that the template does not have.
            UserError: the template refuses the messages.
        """
        for option in options or ():
            if not self.takes(option):
                raise bad(f"chat_template_kwargs.{option}", f"the model's chat template has no {option!r}")
        text = self.template.render(
            messages,
            list(tools) or None,
            add_generation_prompt=add_generation_prompt is not False,
            continue_final_message=continue_final_message,
            **(options or {}),
        )
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if self.is_base:
            ids = self.encode(text)
        if not ids:
            raise bad("messages", "messages: there is no text in them")
        return text, ids

    def takes(self, option: str) -> bool:
        """Whether the chat template knows a variable."""
        if self.template.encoding is not None:
            return option in ("thinking", "enable_thinking")
        sources = (self.template.source, self.template.with_tools)
        return option not in _GIVEN and any(option in variables(source) for source in sources if source)

    def effort(self, effort: str) -> dict[str, Any]:
        """What OpenAI's `reasoning_effort` means to the template: its own variable of that name, or whether to think.

        Raises:
            APIError: the template has neither.
        """
        known = [option for option in _EFFORT if self.takes(option)]
        if not known:
            raise bad("reasoning_effort", "reasoning_effort: the model's chat template does not know reasoning")
        return {option: effort if option == "reasoning_effort" else effort != "none" for option in known}

    def room(self, prompt: Sequence[int], asked: int | None) -> int:
        """How many tokens a chat's answer may have.

        Raises:
            TooLong: the prompt fills the context.
        """
        left = self.engine.context - len(prompt)
        if left < 1:
            # Clients know a prompt that is too long by this sentence of OpenAI's.
            raise TooLong(
                f"this model's maximum context length is {self.engine.context} tokens, and the prompt has {len(prompt)}"
            )
        return min(left, self.max_new_tokens or left) if asked is None else asked

    # -- sampling ----------------------------------------------------------------------------------------------------

    def sampling(self, body: Drawing, seed: int) -> Sampling:
        """What a request says, and for the rest what the model's folder says."""
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
        self.check_ids(list(bias), "logit_bias")
        given = {name: getattr(body, name) for name in _DEFAULTS if getattr(body, name) is not None}
        if given.get("top_k") == -1:  # vLLM's way to say all
            given["top_k"] = 0
        return replace(
            self.defaults,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=bias,
            seed=seed,
            **given,
        )

    def mask(self, kind: str, value: Any, *, thinking: bool = False) -> Mask:
        """The grammar of `schemas.constraint`."""
        grammars = self.grammars
        if kind == "json_object":
            return grammars.json_object(thinking=thinking)
        return getattr(grammars, kind)(value, thinking=thinking)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def decision_prompt(self, messages: list[dict[str, Any]], question: str) -> list[int]:
        """What comes before the answer to a question about messages."""
        if self.is_base:
            text = "\n\n".join(message["content"] for message in messages)
            return self.encode(f"{text}\n\n{question}\n")
        if messages[-1]["role"] == "user":
            last = messages[-1] | {"content": f"{messages[-1]['content']}\n\n{question}"}
            messages = [*messages[:-1], last]
        else:
            messages = [*messages, {"role": "user", "content": question}]
        options = {option: False for option in ("enable_thinking", "thinking") if self.takes(option)}
        return self.chat(messages, options=options)[1]

    def decision_answer(self, answer: str) -> list[int]:
        """An answer's ids with what ends a reply: the end-of-text token, or for a base model the end of the line."""
        ids = self.plain.encode(answer, add_special_tokens=False).ids
        if self.is_base or not self.stop_ids:
            return self.plain.encode(answer + "\n", add_special_tokens=False).ids
        return [*ids, self.end_of_reply]

    @cached_property
    def end_of_reply(self) -> int:
        """The token that the template puts after an assistant's message, if it is one that ends texts; else the first
        of those."""
        mark = "inazuma"
        messages = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark}]
        text = self.template.render(messages, add_generation_prompt=False).rpartition(mark)[2]
        after = self.tokenizer.encode(text, add_special_tokens=False).ids[:1]
        return after[0] if after and after[0] in self.stop_ids else min(self.stop_ids)


_GIVEN = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables of a template that are no options."""


def _defaults(generation: Mapping[str, Any], path: Path) -> Sampling:
    given = {name: generation[name] for name in _DEFAULTS if generation.get(name) is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {name} is {value!r}, not a number")
    if generation.get("do_sample") is False:
        given["temperature"] = 0.0
    return Sampling(**given)


def _fingerprint(folder: Path) -> str:
    """Changes with the model's files and this code's version."""
    digest = hashlib.sha256(inazuma.__version__.encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.is_file():
            digest.update(f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}".encode())
    return "fp_" + digest.hexdigest()[:12]


def _decision_temperature(folder: Path) -> float:
    """What `decision.json` in a model folder says: `{"temperature": T}`; 1 without the file.

    Raises:
        UserError: it says something else.
    """
    path = folder / "decision.json"
    if not path.is_file():
        return 1.0
    content = read_json(path)
    value = content.get("temperature") if isinstance(content, dict) and set(content) == {"temperature"} else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f'{path}: expected {{"temperature": a number above 0}} and nothing else')
    return float(value)
