"""Latency under load against queueing theory, and costs against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest

from inazuma.runs.load import REQUESTS, greatest_load, rank_interval, replicas, request_cost, under_load


def test_waiting_is_pollaczek_and_khinchins():
    """Mean time in an M/D/1 queue: s + s rho / (2 (1 - rho))."""
    for rho in (0.3, 0.6):
        times = under_load(np.full(100, 10.0), rho * 100)
        assert times.mean() == pytest.approx(10 + 10 * rho / (2 * (1 - rho)), rel=0.1)
        assert len(times) == REQUESTS and times.min() >= 10 - 1e-6


def test_the_greatest_load_is_where_the_limit_is_met():
    service = np.random.default_rng(0).gamma(4, 5, size=1000)
    load = greatest_load(service, 200.0)
    assert np.quantile(under_load(service, load), 0.99) <= 200 < np.quantile(under_load(service, 1.02 * load), 0.99)
    assert greatest_load(service, 10.0) == 0 and replicas(service, 3.0, 10.0) == 0
    assert replicas(service, 10 * load, 200.0) == 10


def test_rank_intervals_cover_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = rank_interval(random.exponential(size=200), 0.95)
        covered += low <= -np.log(0.05) <= high
    assert covered / 400 >= 0.93


def test_a_cost_by_hand():
    facts = {
        "hosted": True, "joules": 36.0, "labels": 1000, "training_seconds": 3600.0,
        "input_tokens": 0, "output_tokens": 0,
    }  # fmt: skip
    prices = {
        "machine_hour": 3.6, "gpu_hour": 10.8, "kilowatt_hour": 0.5, "label": 0.1, "months": 1.0,
        "api_input_mtok": 2.0, "api_output_mtok": 8.0,
    }  # fmt: skip
    terms = request_cost(facts, prices, 2, 10.0)
    requests = 30.44 * 86400 * 10
    assert terms["machines"] == pytest.approx(2 * 3.6 / 36000)
    assert terms["energy"] == pytest.approx(36 / 3.6e6 * 0.5)
    assert terms["labels"] == pytest.approx(100 / requests) and terms["training"] == pytest.approx(3.6 / requests)
    gpu = request_cost(facts | {"gpu": "H100"}, prices, 2, 10.0)
    assert gpu["machines"] == pytest.approx(2 * 14.4 / 36000) and gpu["training"] == pytest.approx(14.4 / requests)
    api = request_cost(facts | {"hosted": False, "input_tokens": 500, "output_tokens": 100}, prices, 0, 10.0)
    assert api["tokens"] == pytest.approx((500 * 2 + 100 * 8) / 1e6) and api["machines"] == api["energy"] == 0
