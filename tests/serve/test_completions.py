"""`/v1/completions`, asked by OpenAI's client and checked against the model itself."""

from __future__ import annotations

import pytest
import torch

from tests.serve.conftest import NAME


def logprobs_of(live, ids: list[int]) -> torch.Tensor:
    """Row i: the log-probabilities of the token after the first i + 1."""
    with torch.inference_mode():
        return live.engine.model(torch.tensor([ids]))[0].double().log_softmax(-1)


def greedy(live, ids: list[int], tokens: int) -> list[int]:
    ids = list(ids)
    for _ in range(tokens):
        ids.append(int(logprobs_of(live, ids)[-1].argmax()))
    return ids


def test_greedy_text_is_the_models(live, client):
    prompt = live.ids("the capital of")
    completion = client.completions.create(model=NAME, prompt="the capital of", max_tokens=8, temperature=0)
    expected = greedy(live, prompt, 8)[len(prompt) :]
    [choice] = completion.choices
    assert choice.text == live.tokenizer.decode(expected, skip_special_tokens=True)
    assert choice.finish_reason == "length"
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.completion_tokens == 8
    assert completion.model == NAME and completion.system_fingerprint.startswith("fp_")


def test_prompt_forms_mean_the_same(live, client):
    ids = [live.ids("the capital of"), live.ids("Paris is")]
    forms = ["the capital of", ids[0], ["the capital of", "Paris is"], ids]
    texts = [
        [choice.text for choice in client.completions.create(model=NAME, prompt=form, temperature=0).choices]
        for form in forms
    ]
    assert texts[0] == texts[1] == texts[2][:1] and texts[2] == texts[3]
    assert len(texts[2]) == 2


def test_echoed_logprobs_are_the_models(live, client):
    """As lm-eval's local-completions asks: token ids, echo, logprobs 1, max_tokens 1, temperature 0."""
    ids = live.ids("the capital of Japan is Tokyo")
    completion = client.completions.create(
        model=NAME, prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1234
    )
    [choice] = completion.choices
    rows = logprobs_of(live, ids)
    told = choice.logprobs
    assert (
        len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids) + 1
    )
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    expected = [rows[i, token].item() for i, token in enumerate(ids[1:])]
    assert told.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    for i, top in enumerate(told.top_logprobs[1:-1]):
        assert max(top.values()) == pytest.approx(rows[i].max().item(), abs=1e-4)
        # What lm-eval calls greedy: the token's own value is the largest.
        assert (told.token_logprobs[i + 1] == max(top.values())) == (rows[i].argmax() == ids[i + 1])
    assert told.token_logprobs[-1] == max(told.top_logprobs[-1].values())
    assert "".join(told.tokens[:-1]) == "the capital of Japan is Tokyo" == choice.text[: told.text_offset[-1]]
    assert told.text_offset[:-1] == [len("".join(told.tokens[:i])) for i in range(len(ids))]


def test_echo_without_new_tokens_only_reads(live, client):
    text = "the capital"
    completion = client.completions.create(model=NAME, prompt=text, echo=True, logprobs=0, max_tokens=0)
    [choice] = completion.choices
    assert choice.text == text and completion.usage.completion_tokens == 0
    assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [1] * (len(choice.logprobs.tokens) - 1)


def test_the_token_that_ends_the_text_has_a_logprob_and_no_text(live, client):
    live.says("Paris")
    completion = client.completions.create(model=NAME, prompt="the", logprobs=2, max_tokens=9, temperature=0)
    [choice] = completion.choices
    assert choice.text == "Paris" and choice.finish_reason == "stop"
    assert choice.logprobs.tokens[-1] == "<|endoftext|>" and choice.logprobs.text_offset[-1] == len("Paris")
    assert completion.usage.completion_tokens == len(choice.logprobs.tokens)


def test_stream_is_the_same_text_and_logprobs(live, client):
    options = {"model": NAME, "prompt": "the capital of", "max_tokens": 24, "seed": 3, "logprobs": 2, "n": 2}
    whole = client.completions.create(**options)
    texts, tokens, reasons, usage = ["", ""], [[], []], [None, None], None
    for chunk in client.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens if choice.logprobs else []
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_seed_decides_and_each_choice_differs(live, client):
    def texts(**options):
        answer = client.completions.create(model=NAME, prompt="the", max_tokens=12, **options)
        return [choice.text for choice in answer.choices], answer.model_extra["seed"]

    three, _ = texts(n=3, seed=5)
    assert texts(n=3, seed=5)[0] == three and len(set(three)) == 3
    assert texts(seed=5)[0] == three[:1], "asking for more choices changes the first"
    free, seed = texts()
    assert texts(seed=seed)[0] == free, "the seed that is told gives the text again"
    assert texts()[0] != free


@pytest.mark.parametrize("stop", ["Tokyo", ["Osaka", "Tokyo", "is Tokyo and"]])
@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_text_and_engine(live, client, stop, stream):
    live.says("is Tokyo and so on and on and on")
    options = {"model": NAME, "prompt": "Japan", "max_tokens": 40, "temperature": 0, "stop": stop}
    if stream:
        chunks = list(client.completions.create(**options, stream=True))
        text, reason = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        [choice] = client.completions.create(**options).choices
        text, reason = choice.text, choice.finish_reason
    assert text == "is " and reason == "stop"


def test_logit_bias_bans_and_forces(live, client):
    [forced] = live.ids("P")
    answer = client.completions.create(
        model=NAME, prompt="the", max_tokens=3, temperature=0, logit_bias={str(forced): 100}
    )
    assert answer.choices[0].text == "PPP"
    top = client.completions.create(model=NAME, prompt="the", max_tokens=1, temperature=0, logprobs=1)
    likeliest = greedy(live, live.ids("the"), 1)[-1]
    other = client.completions.create(
        model=NAME, prompt="the", max_tokens=1, temperature=0, logit_bias={str(likeliest): -100}, logprobs=1
    )
    assert other.choices[0].logprobs.tokens != top.choices[0].logprobs.tokens


def test_sampling_parameters_reach_the_engine(live, client):
    client.completions.create(
        model=NAME,
        prompt="the",
        max_tokens=1,
        temperature=0.5,
        top_p=0.75,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        extra_body={"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    sampling = live.engine.requests[-1].sampling
    told = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
    assert told == (0.5, 0.75, 7, 0.125)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.25, -0.5, 1.5)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"guided_choice": ["Paris", "Tokyo"]}, "Paris|Tokyo"),
        ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}}, r"\d{3}-\d{2}"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "b", "schema": {"type": "boolean"}}}},
            "true|false",
        ),
    ],
)
def test_forms_are_kept(live, client, form, text):
    import re

    answer = client.completions.create(model=NAME, prompt="the", max_tokens=30, extra_body=form)
    assert re.fullmatch(rf"\s*({text})\s*", answer.choices[0].text) and answer.choices[0].finish_reason == "stop"


def test_cached_tokens_are_told(live, client):
    prompt = "the capital of Japan and of France"
    first = client.completions.create(model=NAME, prompt=prompt, max_tokens=1)
    second = client.completions.create(model=NAME, prompt=prompt, max_tokens=1)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1


def test_many_prompts_do_not_overfill_the_engine(live, client):
    answer = client.completions.create(model=NAME, prompt=["the"] * 100, max_tokens=1, temperature=0)
    assert [choice.index for choice in answer.choices] == list(range(100))
    assert len({choice.text for choice in answer.choices}) == 1
    assert answer.usage.total_tokens == 100 * (len(live.ids("the")) + 1)
