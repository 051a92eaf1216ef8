"""Slices, calibration, curves and break-even against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from inazuma.rightsize.analysis import break_even, calibration_error, cost_curve, script, slices
from inazuma.runs.ladder_curves import labels_to_parity


def lines(scores):
    return [
        {
            "prompt": "ア" * 5 if i % 2 else "a" * 50,
            "target": "x",
            "cluster": None,
            "score": s,
            "confidence": 0.95,
        }
        for i, s in enumerate(scores)
    ]


def test_the_worst_slice_comes_first():
    small = lines([1.0 if i % 2 else 0.0 for i in range(80)])
    found = slices(small, lines([1.0] * 80), classes=True)
    assert found[0]["difference"] == -1 and found[0]["high"] < 0 and found[0]["items"] == 40
    assert {"script: Latin", "script: Japanese", "label: x"} <= {one["slice"] for one in found}
    assert [one["difference"] for one in found] == sorted(one["difference"] for one in found)


def test_scripts():
    assert [script(text) for text in ("Hello", "日本の電気", "Привет", "123")] == [
        "Latin",
        "Japanese",
        "Cyrillic",
        "none",
    ]


def test_the_calibration_error_is_the_gap_between_confidence_and_quality():
    assert calibration_error(lines([1.0] * 50 + [0.0] * 50)) == pytest.approx(0.45)
    assert calibration_error(lines([1.0] * 95 + [0.0] * 5)) == pytest.approx(0)


def test_break_even_against_an_api_is_the_closed_form():
    """L* = machine hour x replicas / (3600 x price a request)."""
    facts = {"joules": 0.0, "labels": 0, "training_seconds": 0.0, "input_tokens": 1000, "output_tokens": 0}
    prices = {
        "machine_hour": 2.4, "kilowatt_hour": 0.3, "label": 0.0, "months": 12.0, "api_input_mtok": 0.378,
        "api_output_mtok": 0.0,
    }  # fmt: skip
    rates = np.geomspace(0.01, 100, 400).tolist()
    own = cost_curve(facts | {"hosted": True}, prices, 1e6, rates, 1.0)
    api = cost_curve(facts | {"hosted": False}, prices, 1e6, rates, 1.0)
    # A published pair: 2.40 an hour against 378 a million requests breaks even at 1.76 requests a second.
    assert break_even(rates, own, api) == pytest.approx(1.76, rel=0.03)
    assert break_even(rates, api, own) is None


def test_parity_follows_the_power_law():
    points = [[n, 1 - 2 * n**-0.5] for n in (32, 100, 316, 1000)]
    assert labels_to_parity(points, 0.95) == (pytest.approx(1600, rel=0.01), "extrapolated")
    assert labels_to_parity(points[:3], points[2][1]) == (316, "measured")
    far = [[n, 1 - 2 * n**-0.1] for n in (3200, 10000, 31600)]
    for curve, aim in (([[32, 0.7], [100, 0.7], [316, 0.69]], 0.9), (points[:2], 0.95), (points, 1.0), (far, 0.9)):
        assert labels_to_parity(curve, aim) == (0, "out of sight")


def test_parity_lies_beyond_labels_that_did_not_reach_it():
    """The line through the points is above the last of them."""
    points = [[10, 0.5], [32, 0.7], [100, 0.85], [316, 0.86]]
    assert labels_to_parity(points, 0.87) == (317, "extrapolated")
