"""Drawing: distributions against their definition, and every draw a function of its own seed and place."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from inazuma.model.generate import sample
from inazuma.serve.request import Request, Sampling
from inazuma.serve.sampler import Sampler, prompt_logprobs, uniform, unpack

V = 700


def logits(seed: int = 0, size: int = V) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def draw(x: torch.Tensor, place: int = 0, prompt: tuple[int, ...] = (1,), **sampling) -> int:
    return Sampler(Request(list(prompt), 9, Sampling(**sampling)), len(x)).draw(x, place).id


def test_numbers_are_uniform_and_their_own():
    numbers = [uniform(seed, place) for seed in range(40) for place in range(50)]
    assert len(set(numbers)) == len(numbers)
    counts = Counter(int(10 * number) for number in numbers)
    expected = len(numbers) / 10
    chi_squared = sum((counts[i] - expected) ** 2 / expected for i in range(10))
    assert chi_squared < 27.9  # the 99.9 % quantile of nine degrees of freedom
    assert uniform(2**64 + 5, 3) == uniform(2**64 + 5, 3)


@pytest.mark.parametrize(
    "sampling", [{"top_k": 5}, {"top_p": 0.8}, {"top_p": 0.3, "top_k": 40}, {"top_k": 650}, {"top_p": 0.999}, {}]
)
def test_draws_follow_the_definition(sampling):
    """`inazuma.model.generate.sample` sorts all tokens in float64; without truncation only the order differs."""
    x = logits()
    for place in range(200):
        u = torch.tensor([uniform(7, place)], dtype=torch.double)
        got = draw(x, place, seed=7, temperature=0.9, **sampling)
        if sampling:
            expected = sample(x[None], u, 0.9, sampling.get("top_k"), sampling.get("top_p", 1.0))
        else:
            cumulative = (x.double() / 0.9).softmax(-1).cumsum(-1)
            expected = (cumulative <= u * cumulative[-1]).sum()
        assert got == int(expected)


def test_ties_do_not_depend_on_how_many_were_sorted():
    x = torch.zeros(2000)
    assert {draw(x, place, seed=1, top_k=3) for place in range(60)} == {0, 1, 2}
    few = [draw(x, place, seed=1, top_p=0.01) for place in range(200)]
    assert set(few) == set(range(20))


def test_min_p_keeps_what_is_likely_enough():
    x = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert {draw(x, place, min_p=0.25, seed=3) for place in range(300)} == {0, 1, 2}


def test_temperature_zero_takes_the_likeliest():
    assert draw(logits(), temperature=0) == int(logits().argmax())


def test_bias_bans_and_forces():
    x = logits()
    best = int(x.argmax())
    assert draw(x, temperature=0, logit_bias={best: -100}) != best
    assert {draw(x, place, logit_bias={17: 100}) for place in range(20)} == {17}


def test_penalties_are_those_of_the_definition():
    x = logits()
    sampler = Sampler(
        Request([3, 4], 9, Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2)),
        V,
    )
    for token in (5, 5, 6):
        sampler.accept(token)
    expected = x.clone()
    for token in (3, 4, 5, 6):
        expected[token] = x[token] / 2 if x[token] > 0 else x[token] * 2
    expected[5] -= 0.5 + 0.25 * 2
    expected[6] -= 0.5 + 0.25
    torch.testing.assert_close(sampler._adjust(x), expected)


def test_a_mask_leaves_nothing_else():
    class Odd:
        def fill(self, bitmask):
            bitmask.fill_(-0x55555556)  # every odd bit

        def accept(self, token):
            return token % 2 == 1

    sampler = Sampler(Request([1], 9, Sampling(seed=1), mask=Odd()), V)
    assert all(sampler.draw(logits(place), place).id % 2 for place in range(50))
    assert unpack(torch.tensor([5, 1], dtype=torch.int32), 33).nonzero()[:, 0].tolist() == [0, 2, 32]


def test_logprobs_are_the_models_own():
    x = logits()
    sampler = Sampler(Request([1], 9, Sampling(temperature=0.2, logit_bias={9: 100}), logprobs=3), V)
    token = sampler.draw(x, 0)
    reference = x.double().log_softmax(-1)
    assert token.id == 9 and math.isclose(token.logprob, float(reference[9]), rel_tol=1e-5)
    assert [id for id, _ in token.top] == reference.topk(3).indices.tolist()
    rows = torch.stack([logits(1), logits(2)])
    first, second = prompt_logprobs(rows, [4, 5], 0)
    assert math.isclose(first.logprob, float(logits(1).double().log_softmax(-1)[4]), rel_tol=1e-5)
    assert math.isclose(second.logprob, float(logits(2).double().log_softmax(-1)[5]), rel_tol=1e-5)
