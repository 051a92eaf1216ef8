"""The verdict: right where the truth is known, silent where the items are too few, and the same for another sample."""

from __future__ import annotations

import numpy as np
import pytest

from inazuma.runs.ladder import joint_means, judge

RULE = {"margin": 0.02, "confidence": 0.95}


def outcomes(rates, n, seed):
    """Zeros and ones of rungs with these true qualities on the same items, whose difficulty they share."""
    random = np.random.default_rng(seed)
    difficulty = random.random(n)
    return np.array([(0.9 * difficulty + 0.1 * random.random(n) < rate) for rate in rates], dtype=float)


def test_the_smallest_of_equals_is_chosen():
    verdict = judge(["majority", "tfidf", "scratch"], outcomes([0.5, 0.9, 0.9], 2000, 0), None, **RULE)
    assert (verdict.kind, verdict.rung, verdict.more_labels) == ("smallest-sufficient", "tfidf", 0)
    assert verdict.probability > 0.95


def test_a_clear_loss_goes_up_the_ladder():
    verdict = judge(["majority", "tfidf", "scratch"], outcomes([0.5, 0.8, 0.95], 1000, 0), None, **RULE)
    assert (verdict.kind, verdict.rung) == ("smallest-sufficient", "scratch")


def test_a_loss_like_the_margin_cannot_be_told_and_says_what_would_settle_it():
    verdict = judge(["majority", "tfidf", "scratch"], outcomes([0.5, 0.88, 0.90], 200, 3), None, **RULE)
    assert (verdict.kind, verdict.open, verdict.reason) == ("cannot-tell", "tfidf", "too few items")
    assert verdict.more_labels > 100


def test_more_labels_settle_what_they_are_said_to_settle():
    """With the number of items that is asked for, four of five samples decide (that is the power)."""
    rates, names = [0.5, 0.90, 0.90], ["majority", "tfidf", "scratch"]
    verdicts = (judge(names, outcomes(rates, 150, seed), None, **RULE) for seed in range(100, 120))
    few = next(verdict for verdict in verdicts if verdict.kind == "cannot-tell")
    again = [judge(names, outcomes(rates, 150 + few.more_labels, seed), None, **RULE).kind for seed in range(10, 20)]
    assert again.count("smallest-sufficient") >= 7


def test_nothing_learnt_is_no_answer():
    verdict = judge(["majority", "tfidf"], outcomes([0.5, 0.5], 3000, 0), None, **RULE)
    assert (verdict.kind, verdict.reason) == ("cannot-tell", "nothing learnt")


def test_a_rung_beyond_a_limit_neither_wins_nor_sets_the_standard():
    scores = outcomes([0.5, 0.8, 0.95], 1000, 0)
    verdict = judge(["majority", "tfidf", "prompted"], scores, None, **RULE, eligible=["majority", "tfidf"])
    assert (verdict.kind, verdict.rung) == ("smallest-sufficient", "tfidf")


def test_few_items_without_a_difference_prove_nothing():
    # A bootstrap of 40 equal outcomes never differs; but 40 items cannot exclude a loss of 2 points.
    scores = np.ones((2, 40))
    verdict = judge(["tfidf", "scratch"], scores, None, **RULE)
    assert verdict.kind == "cannot-tell" and verdict.sufficient["tfidf"] >= 0.98**40
    assert judge(["tfidf", "scratch"], np.ones((2, 250)), None, **RULE).kind == "smallest-sufficient"


def test_clusters_make_it_less_sure():
    base = outcomes([0.5, 0.86, 0.9], 60, 0)
    repeated = np.repeat(base, 20, axis=1)
    names = ["majority", "tfidf", "scratch"]
    alone = judge(names, repeated, None, **RULE)
    together = judge(names, repeated, [str(i // 20) for i in range(1200)], **RULE)
    assert together.sufficient["tfidf"] > alone.sufficient["tfidf"] or alone.insufficient["tfidf"] < 0.05
    assert together.kind == "cannot-tell"


def test_the_joint_draws_have_the_standard_error_of_a_mean():
    scores = outcomes([0.7, 0.7], 400, 0)
    means = joint_means(scores, None)
    assert means.std(axis=0) == pytest.approx(scores.std(axis=1) / 20, rel=0.08)
    # The same items for all: differences vary less than if each rung drew its own.
    assert (means[:, 0] - means[:, 1]).std() == pytest.approx((scores[0] - scores[1]).std() / 20, rel=0.08)


def test_verdicts_agree_when_the_test_split_is_redrawn():
    """Five other test splits of the same world: a verdict that claims 95 % is wrong in at most one of twenty such."""
    wrong, decided = 0, 0
    names, rates = ["majority", "tfidf", "embedding", "scratch", "prompted"], [0.4, 0.80, 0.895, 0.90, 0.90]
    for world in range(2):
        for redraw in range(5):
            verdict = judge(names, outcomes(rates, 3000, 100 * world + redraw), None, **RULE)
            if verdict.kind == "smallest-sufficient":
                decided += 1
                wrong += verdict.rung != "embedding"
    assert decided >= 8 and wrong <= 1
