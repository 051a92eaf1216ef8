"""Intervals and standard errors against statsmodels and scipy, and what they must not do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint

from inazuma.errors import UserError
from inazuma.runs import intervals


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_statsmodels(n, data, level):
    k = data.draw(st.integers(0, n))
    expected = proportion_confint(k, n, alpha=1 - level, method="wilson")
    assert intervals.wilson(k, n, level) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("clusters", [None, [i // 3 for i in range(60)], [None] * 30 + ["a"] * 30])
def test_the_standard_error_is_that_of_a_regression_on_a_constant(clusters):
    x = np.random.default_rng(0).normal(size=60)
    if clusters is None:
        expected = sm.OLS(x, np.ones(60)).fit().bse[0]
    else:
        groups = [i if name is None else 30 if name == "a" else 100 + name for i, name in enumerate(clusters)]
        expected = sm.OLS(x, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": np.array(groups)}).bse[0]
    assert intervals.standard_error(x, clusters) == pytest.approx(expected, rel=1e-12)


def test_one_cluster_has_no_standard_error():
    assert math.isnan(intervals.standard_error([1, 0, 1], ["a"] * 3))


def test_the_bootstrap_is_scipys_within_its_own_noise():
    x = np.random.default_rng(1).gamma(2, size=200)
    low, high = intervals.bootstrap_mean(x, seed=0, resamples=20000)
    theirs = bootstrap((x,), np.mean, method="percentile", n_resamples=20000, rng=5).confidence_interval
    error = x.std() / math.sqrt(200)
    assert low == pytest.approx(theirs.low, abs=0.06 * error)
    assert high == pytest.approx(theirs.high, abs=0.06 * error)


def test_the_bootstrap_draws_whole_clusters_and_the_same_bits_each_time():
    random = np.random.default_rng(2)
    cluster = np.repeat(np.arange(50), 10)
    x = random.normal(size=50)[cluster]  # items of a cluster are copies of one another
    low, high = intervals.bootstrap_mean(x, cluster.tolist(), seed=3)
    assert (low, high) == intervals.bootstrap_mean(x, cluster.tolist(), seed=3)
    assert (low, high) != intervals.bootstrap_mean(x, cluster.tolist(), seed=4)
    # As wide as if each cluster were seen once, not ten times.
    assert high - low == pytest.approx(2 * 1.96 * x[::10].std(ddof=1) / math.sqrt(50), rel=0.1)


def test_the_bootstrap_of_many_items_is_drawn_in_the_order_of_one_draw_at_a_time(monkeypatch):
    x = np.random.default_rng(3).normal(size=101)
    whole = intervals.bootstrap_mean(x, seed=1, resamples=300)
    monkeypatch.setattr(intervals, "_AT_ONCE", 1)
    assert intervals.bootstrap_mean(x, seed=1, resamples=300) == pytest.approx(whole, rel=1e-12)


def test_shares_of_clusters_are_as_wide_as_the_clusters_ask_for():
    alone = intervals.share_interval([1, 0] * 50)
    assert alone == intervals.wilson(50, 100)
    copies = intervals.share_interval([1] * 50 + [0] * 50, [i // 10 for i in range(100)])
    assert copies == pytest.approx(intervals.wilson(4.5, 9), abs=1e-9)  # ten clusters, with the finite correction
    agreed = intervals.share_interval([1] * 100, [i // 10 for i in range(100)])
    assert agreed == intervals.wilson(10, 10)
    assert agreed[0] < 1


def test_coverage_of_clustered_shares():
    """Clusters of 5 items that are alike: the interval holds the truth 95 times in 100, the naive one far less."""
    random, clusters = np.random.default_rng(4), [i // 5 for i in range(300)]
    held = naive = 0
    for _ in range(400):
        difficulty = np.repeat(random.beta(1, 1, size=60), 5)
        x = (random.random(300) < difficulty).astype(float)
        low, high = intervals.share_interval(x, clusters)
        held += low <= 0.5 <= high
        low, high = intervals.wilson(x.sum(), 300)
        naive += low <= 0.5 <= high
    assert held / 400 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)
    assert naive / 400 < 0.9


def test_the_minimum_detectable_effect_has_the_power_it_says():
    effect = intervals.minimum_detectable_effect(0.1, level=0.99, power=0.9)
    power = NormalIndPower(ddof=0).power(effect / 0.1, nobs1=1, alpha=0.01, ratio=0)
    assert power == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: intervals.wilson(3, 2), "3 of 2 is not a share"),
        (lambda: intervals.wilson(0, 0), "0 of 0"),
        (lambda: intervals.standard_error([]), "no items"),
        (lambda: intervals.standard_error([1.0, math.nan]), "not a finite number"),
        (lambda: intervals.share_interval([0.5]), "zeros and ones"),
        (lambda: intervals.bootstrap_ratio([1.0], [0.0], seed=0), "division by zero"),
        (lambda: intervals.bootstrap_mean([1.0], ["a", "b"], seed=0), "2 clusters are named for 1 items"),
        (lambda: intervals.wilson(1, 2, level=95), "between 0 and 1"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_holm_is_statsmodels():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.9])
    assert intervals.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
