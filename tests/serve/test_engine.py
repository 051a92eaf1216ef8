"""The engine: the model's own text whatever else is asked for at once, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from inazuma.model import ModelConfig
from inazuma.ops.pool import PAGE
from inazuma.serve.engine import Engine
from inazuma.serve.request import Busy, Done, Request, Sampling, Token, TooLong
from inazuma.serve.runner import Runner
from tests.model.tiny import build, tiny, tokens
from tests.serve.test_runner import SHAPES

GREEDY = Sampling(temperature=0)


def engine(config: ModelConfig | None = None, pages: int = 12, **options) -> Engine:
    model = build(config or tiny(), dtype=torch.float32)
    return Engine(Runner(model, pages=pages, context=128, format="float32"), **options)


async def answer(engine: Engine, request: Request) -> tuple[list[Token], Done]:
    written: list[Token] = []
    async for event in engine.submit(request):
        if isinstance(event, Done):
            return written, event
        written.extend(event)
    raise AssertionError("the stream ended without saying why")


def ask(engine: Engine, *requests: Request) -> list[tuple[list[int], Done]]:
    async def all_of_them():
        return await asyncio.gather(*(answer(engine, request) for request in requests))

    return [([token.id for token in written], done) for written, done in asyncio.run(all_of_them())]


def idle(engine: Engine) -> bool:
    metrics = engine.metrics()
    return not any(metrics[name] for name in ("requests_running", "requests_waiting", "cache_tokens_used"))


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_are_the_models(shape):
    config = tiny(**SHAPES[shape])
    prompts = [tokens(n, seed=n).tolist() for n in (5, 70, 33, 1, PAGE)]
    expected = build(config, dtype=torch.float32).generate(prompts, 20)
    serving = engine(config)
    answers = ask(serving, *(Request(prompt, 20, GREEDY) for prompt in prompts))
    assert [prompt + new for prompt, (new, _) in zip(prompts, answers, strict=True)] == expected
    assert all(done.reason == "length" and done.new_tokens == 20 for _, done in answers)
    assert idle(serving)
    serving.close(1)


def test_a_seed_gives_its_text_in_any_company_and_with_too_few_pages():
    serving = engine(pages=4)  # two texts of 128 tokens at most: the others wait or are interrupted
    requests = [
        Request(tokens(n, seed=n).tolist(), 50, Sampling(temperature=1.0, top_p=0.95, seed=n)) for n in (30, 50, 65, 77)
    ]
    alone = [ask(serving, request)[0][0] for request in requests]
    together = [new for new, _ in ask(serving, *requests)]
    assert together == alone and len({tuple(new) for new in alone}) == 4
    assert idle(serving)
    serving.close(1)


def test_a_second_turn_reads_only_what_is_new():
    serving = engine()
    first = tokens(70).tolist()
    [(new, done)] = ask(serving, Request(first, 20, GREEDY))
    assert done.cached_tokens == 0
    turn = [*first, *new, *tokens(10, seed=3).tolist()]
    [(again, done)] = ask(serving, Request(turn, 10, GREEDY))
    assert done.cached_tokens == PAGE
    fresh = engine()
    [(expected, done)] = ask(fresh, Request(turn, 10, GREEDY))
    assert done.cached_tokens == 0 and again == expected
    for each in (serving, fresh):
        each.close(1)


def test_what_is_asked_about_a_prompt():
    serving = engine()
    prompt = tokens(100).tolist()
    ask(serving, Request(prompt, 1, GREEDY))  # now it is in the cache
    [(new, done)] = ask(serving, Request(prompt, 0, prompt_logprobs=2, hidden=True, selection=True))
    assert new == [] and done.reason == "length" and done.cached_tokens == 0
    model = build(tiny(), dtype=torch.float32)
    reference = model(torch.tensor([prompt]))[0].detach().log_softmax(-1)
    assert [token.id for token in done.prompt] == prompt and done.prompt[0].logprob is None
    for at, token in enumerate(done.prompt[1:]):
        assert token.logprob == pytest.approx(float(reference[at, token.id]), abs=1e-4)
        assert [id for id, _ in token.top] == reference[at].topk(2).indices.tolist()
    hidden, _, _ = model.read(torch.tensor([prompt]))
    torch.testing.assert_close(done.hidden, hidden[0].mean(0).detach(), atol=1e-5, rtol=1e-4)
    assert [len(layer) for layer in done.selection] == [12, 12, 12]
    [(_, part)] = ask(serving, Request(prompt, 0, prompt_logprobs=0, prompt_logprobs_start=90))
    assert part.cached_tokens == PAGE
    assert [token.logprob for token in part.prompt] == [token.logprob for token in done.prompt[90:]]
    serving.close(1)


def test_text_ends_at_a_stop_token():
    serving = engine()
    prompt = tokens(20).tolist()
    [(new, _)] = ask(serving, Request(prompt, 20, GREEDY))
    [(short, done)] = ask(serving, Request(prompt, 20, GREEDY, stop_ids=frozenset({new[4]})))
    assert short == new[: new.index(new[4]) + 1] and done.reason == "stop"
    serving.close(1)


def test_right_guesses_are_accepted_and_change_nothing():
    """A model whose prediction layer is a copy of what the model does guesses right; here: one that always writes the
    same token, because every logit but one is pushed down."""
    config = tiny(num_nextn_predict_layers=1)
    serving = engine(config)
    sampling = Sampling(temperature=0, logit_bias={11: 100})
    [(new, done)] = ask(serving, Request(tokens(9).tolist(), 21, sampling))
    assert new == [11] * 21
    assert done.drafted == done.accepted == 10, "a token from the prompt's pass, then two a pass"
    serving.close(1)


def test_cancelling_ends_within_a_step_and_frees_the_pages():
    serving = engine()

    async def start_and_leave():
        stream = serving.submit(Request(tokens(30).tolist(), 98, GREEDY))
        waiting = serving.submit(Request(tokens(31).tolist(), 90, GREEDY))
        waiting.cancel()
        written = 0
        async for event in stream:
            if isinstance(event, Done):
                return event, [e async for e in waiting][-1]
            written += len(event)
            if written == 1:
                stream.cancel()
                steps.append(serving.metrics()["steps"])

    steps: list[float] = []
    done, other = asyncio.run(start_and_leave())
    assert done.reason == other.reason == "cancelled"
    assert serving.metrics()["steps"] - steps[0] <= 2
    assert idle(serving) and serving.metrics()["requests_cancelled"] == 2
    serving.close(1)


def test_what_can_never_run_is_refused_and_what_cannot_now_is_told_when():
    serving = engine(pages=1, most_waiting=2)

    async def submit(prompt: int, new: int):
        return serving.submit(Request(tokens(prompt).tolist(), new, GREEDY))

    for prompt, new in ((120, 9), (60, 5), (0, 1)):
        with pytest.raises(TooLong):
            asyncio.run(submit(prompt, new))

    async def too_many():
        streams, busy = [], None
        for _ in range(20):
            try:
                streams.append(serving.submit(Request(tokens(20).tolist(), 40, GREEDY)))
            except Busy as error:
                busy = error
        return busy, [[event async for event in stream][-1].reason for stream in streams]

    busy, reasons = asyncio.run(too_many())
    assert busy is not None and busy.retry_after >= 1
    assert set(reasons) == {"length"} and len(reasons) >= 2
    serving.close(1)


def test_closing_finishes_what_it_can_and_cancels_the_rest():
    for grace, reason in ((30, "length"), (0, "cancelled")):
        serving = engine()

        async def close_meanwhile(serving=serving, grace=grace):
            stream = serving.submit(Request(tokens(30).tolist(), 90, GREEDY))
            await anext(stream)
            closing = threading.Thread(target=serving.close, args=(grace,))
            closing.start()
            events = [event async for event in stream]
            closing.join()
            with pytest.raises(Busy):
                serving.submit(Request([1], 1))
            return events[-1].reason

        assert asyncio.run(close_meanwhile()) == reason


def test_what_was_asked_about_a_prompt_outlives_an_interruption():
    """With pages for one text and a half, one is interrupted after its prompt was read."""
    requests = [Request(tokens(n, seed=n).tolist(), 60, GREEDY, prompt_logprobs=1) for n in (60, 61)]
    serving, roomy = engine(pages=3), engine()
    tight = ask(serving, *requests)
    assert [done.prompt for _, done in tight] == [done.prompt for _, done in ask(roomy, *requests)]
    assert all(len(done.prompt) == done.prompt_tokens for _, done in tight)
    for each in (serving, roomy):
        each.close(1)


def test_a_choice_that_fails_ends_what_there_is_and_not_the_engine(monkeypatch):
    serving = engine()
    right = serving._scheduler.next

    def wrong():
        monkeypatch.setattr(serving._scheduler, "next", right)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(serving._scheduler, "next", wrong)
    [(_, done)] = ask(serving, Request(tokens(9).tolist(), 5, GREEDY))
    assert done.reason == "failed" and "no such luck" in done.error
    [(_, done)] = ask(serving, Request(tokens(9).tolist(), 5, GREEDY))
    assert done.reason == "length" and idle(serving)
    serving.close(1)


def test_a_step_that_fails_fails_its_texts_alone(monkeypatch):
    serving = engine()
    right = serving._runner.step

    def wrong(pieces):
        monkeypatch.setattr(serving._runner, "step", right)
        raise RuntimeError("no such luck")

    monkeypatch.setattr(serving._runner, "step", wrong)
    [(_, done)] = ask(serving, Request(tokens(9).tolist(), 5, GREEDY))
    assert done.reason == "failed" and "no such luck" in done.error
    [(_, done)] = ask(serving, Request(tokens(9).tolist(), 5, GREEDY))
    assert done.reason == "length" and idle(serving)
    serving.close(1)
