"""The comparison's tests against statsmodels and scipy, and how often it is wrong when nothing or something differs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from inazuma.errors import UserError
from inazuma.evaluate import statistics
from inazuma.evaluate.statistics import Comparison, as_family, compare, sign_flips, tango, tost


def pairs(both: int, won: int, lost: int, neither: int) -> tuple[list[int], list[int]]:
    """Scores of A and B."""
    return [1] * both + [0] * won + [1] * lost + [0] * neither, [1] * both + [1] * won + [0] * lost + [0] * neither


@pytest.mark.parametrize("table", [(50, 12, 3, 35), (5, 0, 0, 5), (0, 4, 4, 0), (10, 1, 9, 0), (200, 30, 31, 10)])
def test_mcnemar_is_statsmodels(table):
    both, won, lost, neither = table
    found = compare(*pairs(*table), margin=0.02)
    assert found.test == "exact McNemar"
    assert found.p_value == pytest.approx(mcnemar([[both, lost], [won, neither]], exact=True).pvalue)
    assert found.difference == pytest.approx((won - lost) / sum(table))


@pytest.mark.parametrize("table", [(1, 0, 44), (12, 3, 100), (0, 0, 30), (20, 20, 50), (5, 0, 5)])
def test_tangos_ends_are_where_its_score_test_turns(table):
    """The score statistic with the nuisance share found by searching, not by the closed form."""
    won, lost, n = table
    low, high = tango(won, lost, n)
    for at, z in ((low, 1.959964), (high, -1.959964)):
        if abs(at) > 1 - 1e-6:
            continue
        q = np.linspace(max(0, -at) + 1e-9, (1 - at) / 2, 200_001)  # the share that only A gets right
        likelihood = (
            won * np.log(q + at + 1e-300) + lost * np.log(q + 1e-300) + (n - won - lost) * np.log1p(-2 * q - at + 1e-15)
        )
        share = q[np.argmax(likelihood)]
        assert (won - lost - n * at) / math.sqrt(n * (2 * share + at * (1 - at))) == pytest.approx(z, abs=0.02)


def test_sign_flips_are_scipys():
    d = np.random.default_rng(0).normal(0.4, 1, size=11)
    exact = permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided")
    assert sign_flips(d, seed=0) == pytest.approx(exact.pvalue)
    d = np.random.default_rng(1).normal(0.25, 1, size=60)
    theirs = permutation_test((d,), np.sum, permutation_type="samples", n_resamples=99_999, rng=1).pvalue
    assert sign_flips(d, seed=0) == pytest.approx(theirs, abs=4 * math.sqrt(theirs / 9999))
    assert sign_flips(d, seed=0) == sign_flips(d, seed=0) != sign_flips(d, seed=1)
    assert sign_flips(np.zeros(30), seed=0) == 1


def test_equivalence_is_statsmodels():
    random = np.random.default_rng(2)
    a, b = random.normal(0, 0.2, size=(2, 80))
    theirs, *_ = ttost_paired(b, a, -0.1, 0.1)
    assert compare(a, b, margin=0.1).equivalence_p == pytest.approx(theirs)
    assert tost(0.0, 0.0, 4, 0.1) == 1 / 16
    assert tost(0.2, 0.0, 40, 0.1) == 1


def test_holm_is_statsmodels():
    base = compare(*pairs(50, 12, 3, 35), margin=0.02)
    p = [0.01, 0.04, 0.03, 0.2, 0.013, 1.0]
    adjusted = [one.adjusted_p for one in as_family([replace(base, p_value=x) for x in p])]
    assert adjusted == pytest.approx(multipletests(p, method="holm")[1])


def verdict(*table: int, margin: float = 0.02) -> str:
    return compare(*pairs(*table), margin=margin).verdict


def test_verdicts():
    assert verdict(50, 20, 3, 30) == "better"
    assert verdict(50, 3, 20, 30) == "worse"
    assert verdict(5000, 20, 20, 4000) == "equivalent"
    assert verdict(50, 5, 3, 30).startswith("cannot tell: about ")
    # Items on which two models never differ prove little when they are few.
    assert verdict(5, 0, 0, 5).startswith("cannot tell")
    assert verdict(300, 0, 0, 300) == "equivalent"
    lower = compare([1.0] * 20, [0.9] * 20, margin=0.05, higher_is_better=False)
    assert lower.verdict == "better"


def test_holm_can_take_a_verdict_back():
    close = compare(*pairs(50, 10, 2, 30), margin=0.02)
    assert close.verdict == "better"
    assert as_family([close] * 5)[0].verdict.startswith("cannot tell")


def test_the_items_asked_for_are_enough():
    """With as many items more as it says, and the same rates, there is a verdict in four of five cases."""
    first = compare(*pairs(120, 18, 10, 52), margin=0.02)
    assert first.more_items
    n = 200 + first.more_items
    random, decided = np.random.default_rng(3), 0
    for _ in range(300):
        both, won, lost, neither = random.multinomial(n, [0.6, 0.09, 0.05, 0.26])
        decided += compare(*pairs(both, won, lost, neither), margin=0.02).verdict in ("better", "equivalent")
    assert decided / 300 > 0.8 - 3 * math.sqrt(0.16 / 300)
    assert n < 3000


def rejected(found: list[Comparison]) -> float:
    return float(np.mean([one.p_value <= 0.05 for one in found]))


SIMULATIONS = 300
NOISE = 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)


def latent(random, n, p_a, p_b, groups, alike):
    """0/1 scores of two models that go together within items, and differences that go together within clusters."""
    item = random.normal(size=n)
    number = np.repeat(np.arange(groups), n // groups)
    scores = []
    for p in (p_a, p_b):
        own = math.sqrt(alike) * random.normal(size=groups)[number] + math.sqrt(1 - alike) * random.normal(size=n)
        scores.append((math.sqrt(0.6) * item + math.sqrt(0.4) * own < norm.ppf(p)).astype(float))
    return *scores, number.tolist()


def test_type_one_error_and_power_of_independent_items():
    random = np.random.default_rng(4)
    null = [compare(*latent(random, 500, 0.7, 0.7, 500, 0)[:2], margin=0.02) for _ in range(SIMULATIONS)]
    assert rejected(null) <= 0.05 + NOISE
    power = [compare(*latent(random, 500, 0.7, 0.77, 500, 0)[:2], margin=0.02) for _ in range(SIMULATIONS)]
    assert rejected(power) > 0.75
    assert {one.verdict for one in power if one.p_value <= 0.05} == {"better"}
    covered = np.mean([one.interval[0] <= 0 <= one.interval[1] for one in null])
    assert abs(covered - 0.95) <= NOISE


def test_type_one_error_of_clusters(monkeypatch):
    """Ten items a cluster: the clusters named, 5 %; not named, far more."""
    monkeypatch.setattr(statistics, "FLIPS", 499)
    monkeypatch.setattr(statistics, "bootstrap_mean", lambda *_, **__: (0.0, 0.0))  # judged elsewhere; takes its time
    random = np.random.default_rng(5)
    drawn = [latent(random, 500, 0.7, 0.7, 50, 0.5) for _ in range(SIMULATIONS)]
    named = rejected([compare(a, b, groups, margin=0.02) for a, b, groups in drawn])
    assert abs(named - 0.05) <= NOISE
    assert rejected([compare(a, b, margin=0.02) for a, b, _ in drawn[:100]]) > 0.15


def test_type_one_error_of_seeds(monkeypatch):
    """Three seeds a side that differ as seeds do: pooled over seeds 5 %; from one seed a side, far more."""
    monkeypatch.setattr(statistics, "FLIPS", 199)
    random = np.random.default_rng(6)

    def scores(rows):
        return random.normal(size=200)[None] + random.normal(0, 0.15, size=(rows, 1)) + random.normal(size=(rows, 200))

    both = []
    for _ in range(SIMULATIONS):
        together = scores(6)
        both.append((together[:3], together[3:]))
    assert rejected([compare(a, b, margin=0.1) for a, b in both]) <= 0.05 + NOISE
    one = rejected([compare(a[0], b[0], margin=0.1) for a, b in both[:100]])
    assert one > 0.15


def test_when_seeds_are_what_is_missing_it_says_so():
    noise = np.random.default_rng(7).normal(0, 0.01, size=(2, 3, 400))
    found = compare([[0.4], [0.6], [0.5]] + noise[0], [[0.6], [0.4], [0.53]] + noise[1], margin=0.02)
    assert found.verdict == "cannot tell: more items would not do, more training seeds would"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: compare([1, 0], [1], margin=0.1), "not of the same items"),
        (lambda: compare([], [], margin=0.1), "not of the same items"),
        (lambda: compare([1], [1], margin=0), "margin must be above 0"),
        (lambda: compare([math.nan], [1], margin=0.1), "not a finite number"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_one_cluster_cannot_tell():
    found = compare([0.1, 0.2], [0.5, 0.9], ["a", "a"], margin=0.1)
    assert found.verdict.startswith("cannot tell: about")
    assert found.interval == (-math.inf, math.inf)
