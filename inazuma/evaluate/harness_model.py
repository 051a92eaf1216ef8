"""A model as lm-evaluation-harness asks it, and what the harness throws away: why an answer ended, what was dropped.

The harness cuts prompts that do not fit at their beginning and scores what comes of it. Here a prompt is cut too, since
the harness must get an answer, but the answer's `Reply` says so, and its sample is an invalid item.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from inazuma.errors import UserError
from inazuma.evaluate.answering import Answering, Reply
from inazuma.evaluate.local import LocalModel
from inazuma.runs.lines import encode_line, read_lines, whole_lines


@dataclass(frozen=True)
class Asked:
    """One of the harness's requests: what it was answered, and what became of it on the way."""

    result: Any
    """What the harness gets: (log-likelihood in nats, whether it is the likeliest), a log-likelihood, or a text."""
    reply: Reply
    max_tokens: int | None


def request_key(kind: str, arguments: Sequence[Any]) -> str:
    """Names a request by what is asked."""
    return hashlib.sha256(json.dumps([kind, *arguments], sort_keys=True).encode()).hexdigest()


class HarnessModel(LM):
    """`model` for lm-evaluation-harness. Replies are kept in the file `kept`, where there is one, and not asked again;
    those that are errors are not kept."""

    def __init__(
        self, model: Answering, kept: Path | None = None, progress: Callable[[str, int, int], None] | None = None
    ) -> None:
        super().__init__()
        self.answering = model
        self.kept = kept
        self.progress = progress or (lambda phase, done, total: None)
        self.asked: dict[str, Asked] = {}
        if kept is not None and kept.exists():
            # A torn last line would swallow the next one.
            kept.write_bytes(b"".join(whole_lines(kept)))
            for line in read_lines(kept):
                asked = Asked(line["result"], Reply(**line["reply"]), line["max_tokens"])
                self.asked[line["request"]] = asked

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [tuple(asked.result) for asked in self._ask("loglikelihood", requests, self._loglikelihood)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [asked.result for asked in self._ask("loglikelihood_rolling", requests, self._rolling)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [asked.result for asked in self._ask("generate_until", requests, self._generate)]

    def _ask(self, kind: str, requests: list[Instance], answer: Callable[..., Asked]) -> list[Asked]:
        keys = [request_key(kind, request.args) for request in requests]
        missing = {key: request.args for key, request in zip(keys, requests, strict=True) if key not in self.asked}
        for done, (key, asked) in enumerate(self._answers(missing, answer), start=1):
            self.asked[key] = asked
            if self.kept is not None and asked.reply.error is None:
                with open(self.kept, "ab") as handle:
                    handle.write(encode_line({"request": key, **asdict(asked)}))
            self.progress(f"lm-eval: {kind}", done, len(missing))
        return [self.asked[key] for key in keys]

    def _answers(self, missing: dict[str, Any], answer: Callable[..., Asked]) -> Iterator[tuple[str, Asked]]:
        if self.answering.at_once == 1:
            for key, arguments in missing.items():
                yield key, answer(*arguments)
            return
        with ThreadPoolExecutor(self.answering.at_once) as pool:
            yield from zip(missing, pool.map(lambda arguments: answer(*arguments), missing.values()), strict=True)

    def _local(self, what: str) -> LocalModel:
        if not isinstance(self.answering, LocalModel):
            raise UserError(f"{what} need a checkpoint on this machine: an address does not say how likely a text is")
        return self.answering

    def _prompt(self, model: LocalModel, text: str) -> list[int]:
        """As the tokenizer itself begins a text; an empty one by the token that begins texts."""
        return model.tokenizer.encode(text).ids or [model.begin]

    def _loglikelihood(self, context: str, continuation: str) -> Asked:
        model = self._local("log-likelihoods")
        # Spaces at the context's end belong to the continuation's first token.
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._prompt(model, stripped)
        if stripped:
            ids = self._prompt(model, stripped + continuation)
            start = min(len(before), len(ids) - 1)
        else:
            ids, start = before + model.encode(continuation), len(before)
        dropped = max(0, len(ids) - model.positions)
        if start - dropped < 1:
            return Asked((-1e9, False), Reply(prompt_tokens=start, dropped=start), None)
        nats, best = model.losses(ids[dropped:], start - dropped)
        reply = Reply(prompt_tokens=start, generated_tokens=0, dropped=dropped)
        return Asked((-float(nats.sum()), bool(best.all())), reply, None)

    def _rolling(self, text: str) -> Asked:
        nats, tokens = self._local("log-likelihoods").text_nats(text)
        return Asked(-nats, Reply(prompt_tokens=tokens, generated_tokens=0, dropped=0), None)

    def _generate(self, context: str, options: dict[str, Any]) -> Asked:
        options = dict(normalize_gen_kwargs(options))
        if options.get("do_sample"):
            raise UserError("the task asks for answers drawn at random; only the likeliest are given here")
        limit, until = options["max_gen_toks"], [mark for mark in options["until"] if mark]
        model = self.answering
        if not isinstance(model, LocalModel):
            reply = model.answer(context, max_tokens=limit, stop=None, seed=0)
            places = [place for place in ((reply.text or "").find(mark) for mark in until) if place >= 0]
            if places:
                reply = Reply(**asdict(reply) | {"text": reply.text[: min(places)], "stop_reason": "stop"})
            return Asked(reply.text or "", reply, limit)
        ids = self._prompt(model, context)
        # The answer gives way before the prompt does; a prompt without room for any answer is cut, and said to be.
        limit = max(1, min(limit, model.positions - len(ids)))
        dropped = max(0, len(ids) + limit - model.positions)
        reply = model.continued(ids[dropped:], limit, until)
        reply = Reply(**asdict(reply) | {"dropped": dropped, "prompt_tokens": len(ids)})
        return Asked(reply.text, reply, limit)
