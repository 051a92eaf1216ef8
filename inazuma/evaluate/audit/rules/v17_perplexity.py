"""Losses per token of different tokenizers side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from inazuma.evaluate.audit.declared import Loss
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided, Word, some
from inazuma.evaluate.audit.log import Log, Study

NUMBER = "V17"
TITLE = "Perplexity across tokenizers"
SOURCE = (
    "llama.cpp#7111; adaptive-span#17: bits per character reported, per byte computed; lm-evaluation-harness#806: word "
    "perplexity 8.79 and 13.0 from two branches"
)
FIX = "compare bits per byte on the same raw UTF-8 bytes, with the byte count, window and stride stored"

_PER_TOKEN = ("token_perplexity", "token_ppl", "loss", "nll", "nll_per_token", "cross_entropy", "bits_per_token")
_UNITS = ("nats per token", "bits per token", "token perplexity")


def check(study: Study) -> Iterator[Word]:
    by_text: dict[str, list[Loss]] = defaultdict(list)
    for loss in study.declared.losses:
        by_text[loss.text].append(loss)
    for text, losses in by_text.items():
        if len({loss.model for loss in losses}) > 1:
            yield from _side_by_side(text, losses)
    reported: dict[tuple[str, str], list[Log]] = defaultdict(list)
    for log, task, _ in study.tasks():
        for score in task.scores:
            if score.metric in _PER_TOKEN:
                reported[task.name, score.metric].append(log)
    for (task, metric), logs in reported.items():
        yield from _logs(task, metric, logs)
    if not by_text and not reported:
        yield Nothing("no loss per token is reported")


def _side_by_side(text: str, losses: list[Loss]) -> Iterator[Word]:
    per_token = [loss for loss in losses if loss.unit in _UNITS]
    tokenizers = {loss.tokenizer for loss in per_token}
    if len(per_token) > 1 and len(tokenizers - {None}) > 1:
        said = some([f"{loss.model} ({loss.tokenizer}) {loss.value:g} {loss.unit}" for loss in per_token])
        yield Found(text, f"different tokenizers: {said}")
    elif len(per_token) > 1 and None in tokenizers:
        yield Undecided(text, "the tokenizers of losses per token are not stated")
    if len({loss.unit for loss in losses}) > 1:
        yield Found(text, f"different units side by side: {some(sorted({loss.unit for loss in losses}))}")
    sizes = {loss.bytes for loss in losses if loss.unit == "bits per byte"}
    if len(sizes - {None}) > 1:
        yield Found(text, f"bits per byte of different bytes: {some(sorted(f'{size:,}' for size in sizes if size))}")
    elif None in sizes:
        yield Undecided(text, "the byte counts are not stated")


def _logs(task: str, metric: str, logs: list[Log]) -> Iterator[Word]:
    if len({log.model for log in logs}) < 2:
        return
    tokenizers = {log.tokenizer for log in logs}
    if None in tokenizers:
        yield Undecided(task, f"{metric} of several models, whose tokenizers the logs do not name")
    elif len(tokenizers) > 1:
        yield Found(task, f"{metric} of models with different tokenizers: {some(sorted(map(str, tokenizers)))}")
