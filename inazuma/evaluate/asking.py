"""Items become samples: what cannot be answered is refused before it is asked, and every answer is typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from inazuma.evaluate.answering import Answering, Reply
from inazuma.evaluate.outcome import Outcome, Sample
from inazuma.evaluate.task import Item, Task


@dataclass(frozen=True)
class Question:
    """An item as it is put to one model."""

    task: Task
    item: Item
    max_tokens: int
    min_answer_tokens: int | None
    refusal: str | None
    """Why it is not asked."""


def question(task: Task, item: Item, model: Answering, max_tokens: int | None) -> Question:
    """The item with its limit, or with the reason why no answer could be right.

    The limit is `max_tokens`, by default the task's, and never more than the model's positions leave. A right answer
    has at least as many tokens as the witness; where the model's tokenizer is not known, nobody can say how many.
    """
    limit = task.max_tokens if max_tokens is None else max_tokens
    least = None if item.witness is None else model.count(item.witness)
    prompt = model.count(item.prompt)
    refusal = item.impossible
    if refusal is None and prompt is not None and model.positions is not None:
        room = model.positions - prompt - 1  # the token that begins a text
        limit = min(limit, room)
        if room < (least or 1):
            refusal = (
                f"a prompt of {prompt} tokens and an answer of at least {least or 1} exceed the model's "
                f"{model.positions} positions"
            )
    if refusal is None and least is not None and least > limit:
        refusal = f"a right answer has at least {least} tokens, and the limit is {limit}"
    return Question(task, item, max(0, limit), least, refusal)


def ask(model: Answering, questions: Sequence[Question], seed: int) -> Iterator[Sample]:
    """The samples of all questions, as they come: refused ones first, then answers in any order."""
    for one in questions:
        if one.refusal is not None:
            yield _sample(one, model, None, seed)
    asked = [one for one in questions if one.refusal is None]
    if model.at_once == 1:
        for one in asked:
            yield _sample(one, model, _put(model, one, seed), seed)
        return
    pool = ThreadPoolExecutor(model.at_once)
    running: dict[Future[Reply], Question] = {}
    try:
        for one in asked:
            if len(running) >= 2 * model.at_once:
                yield from _finished(running, model, seed)
            running[pool.submit(_put, model, one, seed)] = one
        while running:
            yield from _finished(running, model, seed)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(running: dict[Future[Reply], Question], model: Answering, seed: int) -> Iterator[Sample]:
    done = wait(running, return_when=FIRST_COMPLETED).done
    # What came is handed on before what failed ends everything.
    for future in sorted(done, key=lambda future: future.exception() is not None):
        yield _sample(running.pop(future), model, future.result(), seed)


def _put(model: Answering, one: Question, seed: int) -> Reply:
    return model.answer(one.item.prompt, max_tokens=one.max_tokens, stop=one.task.stop, seed=seed)


def _sample(one: Question, model: Answering, reply: Reply | None, seed: int) -> Sample:
    item = one.item
    outcome, score, extracted = _judged(one, reply)
    return Sample(
        task=item.task,
        item=item.hash,
        id=item.id,
        cluster=item.cluster,
        outcome=outcome,
        score=score,
        prompt=item.prompt,
        target=item.target,
        answer=None if reply is None else reply.text,
        extracted=extracted,
        stop_reason=None if reply is None else reply.stop_reason,
        prompt_tokens=model.count(item.prompt) if reply is None else reply.prompt_tokens,
        generated_tokens=None if reply is None else reply.generated_tokens,
        max_tokens=one.max_tokens,
        prompt_tokens_dropped=None if reply is None else reply.dropped,
        min_answer_tokens=one.min_answer_tokens,
        chance=item.chance,
        seed=seed,
        batch_size=model.batch_size,
        error=one.refusal if reply is None else reply.error,
    )


def _judged(one: Question, reply: Reply | None) -> tuple[Outcome, float | None, str | None]:
    """(outcome, score, what was extracted). An answer that was cut off is "truncated" even where it is right."""
    if reply is None:
        return "invalid_item", None, None
    if reply.error is not None or reply.text is None:
        return "infrastructure_error", None, None
    if reply.dropped:
        return "invalid_item", None, None
    judged = one.task.judge(reply.text, one.item.target)
    if reply.refused:
        return "refused", 0.0, judged.extracted
    if reply.stop_reason == "length":
        return "truncated", judged.score, judged.extracted
    if judged.extracted is None:
        return "no_answer", 0.0, None
    return ("correct" if judged.score == 1 else "wrong"), judged.score, judged.extracted
