"""Nothing that is tested may have been learnt from: duplicates, groups, time, and labels in the text."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from inazuma.rightsize import checks
from inazuma.rightsize.checks import minimum_detectable, noise_candidates, spelt_out
from inazuma.rightsize.splits import NEAR, SPLITS, duplicate_sets, make_splits, pieces_of
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task
from tests.rightsize.planted import keyword, noisy


def examples(rows, **columns):
    return [
        Example(i, row["text"], row["label"], **{name: make(i) for name, make in columns.items()})
        for i, row in enumerate(rows)
    ]


TASK = Task(data="a.csv")


def where(splits):
    return {e.row: name for name in SPLITS for e in splits[name]}


def test_shares_and_classes_are_kept():
    splits = make_splits(TASK, examples(keyword(400)))
    sizes = {name: len(splits[name]) for name in SPLITS}
    assert sizes == {"train": 220, "validation": 40, "calibration": 40, "test": 100}
    for name in SPLITS:
        counts = Counter(e.target for e in splits[name])
        assert abs(counts["praise"] - counts["complaint"]) <= 2


def test_near_duplicates_are_found_and_stay_together():
    rows = keyword(200)
    for i in range(0, 60, 2):
        rows[i + 1] = {"text": rows[i]["text"].upper() if i % 4 else rows[i]["text"] + "s", "label": rows[i]["label"]}
    found = examples(rows)
    pairs = {tuple(members) for members in duplicate_sets(found)}
    assert pairs == {(i, i + 1) for i in range(0, 60, 2)}
    splits = make_splits(TASK, found)
    place = where(splits)
    assert all(place[i] == place[i + 1] for i in range(0, 60, 2))
    assert any(one.kind == "duplicates" and one.message.startswith("30 rows") for one in splits.findings)


def test_pieces_are_those_of_the_texts():
    texts = ["", "a", "abcd", "abcde", "the theme of the thesis " * 40, "\ud800 lone", "稲妻は雷光である😀" * 3]
    for text in texts:
        whole = {text[i : i + 5] for i in range(max(1, len(text) - 4))}
        for other in texts:
            pieces = {other[i : i + 5] for i in range(max(1, len(other) - 4))}
            shared = np.intersect1d(pieces_of(text), pieces_of(other))
            assert len(shared) == len(whole & pieces), (text, other)


def test_texts_of_one_template_are_shared_out_and_told():
    rows = [
        {"text": f"order number {i:04} has not arrived at my address yet", "label": "ab"[i % 2]} for i in range(200)
    ]
    rows[7] = dict(rows[6])
    splits = make_splits(TASK, examples(rows))
    assert {name: len(splits[name]) for name in SPLITS} == {
        "train": 110,
        "validation": 20,
        "calibration": 20,
        "test": 50,
    }
    [alike] = [one for one in splits.findings if one.kind == "alike"]
    assert alike.message.startswith("200 rows are variations of one text")
    assert where(splits)[6] == where(splits)[7]
    assert [one.message for one in splits.findings if one.kind == "duplicates"] == [
        "1 rows repeat another row's text, or nearly"
    ]


def test_near_duplicates_are_those_that_comparing_all_pairs_finds():
    draw = random.Random(0)
    texts = []
    for _ in range(150):
        words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(draw.randint(3, 20))]
        texts.append(" ".join(words))
        words[draw.randrange(len(words))] = "other"  # some of these pairs are nearer than NEAR, some are not
        texts.append(" ".join(words))
    sets = [{text[k : k + 5] for k in range(len(text) - 4)} for text in texts]
    near = {
        (i, j)
        for j, other in enumerate(sets)
        for i, one in enumerate(sets[:j])
        if len(one & other) >= NEAR * len(one | other)
    }
    assert 30 < len(near) < 140 and all(j == i + 1 for i, j in near)
    found = duplicate_sets([Example(i, text, "a") for i, text in enumerate(texts)])
    assert {tuple(members) for members in found} == near


def test_groups_stay_together():
    splits = make_splits(TASK, examples(keyword(300), group=lambda i: f"g{i // 6}"))
    for g in range(50):
        assert len({name for row, name in where(splits).items() if row // 6 == g}) == 1


def test_time_runs_forwards():
    rows = examples(keyword(200), time=lambda i: f"2024-{1 + (i * 7 % 200) // 20:02}-{1 + (i * 7) % 20:02}")
    splits = make_splits(Task(data="a.csv", time="when"), rows)
    assert max(e.time for e in splits["train"]) <= min(e.time for e in splits["test"])
    assert len(splits["test"]) == 50


def test_a_planted_leak_is_caught_and_taken_out_of_training():
    rows = keyword(200)
    names = ["test" if i < 50 else "train" for i in range(200)]
    for i in range(8):
        rows[60 + i] = dict(rows[i])
    splits = make_splits(Task(data="a.csv", split="split"), examples(rows, split=lambda i: names[i]))
    [leak] = [one for one in splits.findings if one.kind.startswith("leak")]
    assert leak.message.startswith("8 training rows repeat a test row")
    assert leak.rows == list(range(60, 68))
    assert not set(leak.rows) & where(splits).keys()
    assert len(splits["test"]) == 50


def test_a_group_on_both_sides_is_a_leak():
    rows = examples(
        keyword(200), split=lambda i: "test" if i < 50 else "train", group=lambda i: f"g{i}" if i != 120 else "g3"
    )
    splits = make_splits(Task(data="a.csv", split="split"), rows)
    assert [one.rows for one in splits.findings if "groups" in one.kind] == [[120]]


def test_a_label_in_the_text_is_a_leak():
    rows = [row | {"text": f"{row['text']} tag={row['label']}"} for row in keyword(100)]
    assert spelt_out(examples(rows)).kind == "leak: label in the text"
    assert spelt_out(examples(keyword(100))) is None


@pytest.mark.parametrize("padding", ["", " padding" * 250], ids=["short", "long"])
def test_what_is_listed_as_a_wrong_label_is_one(padding, monkeypatch):
    monkeypatch.setattr(checks, "_READ_FOR_NOISE", 100_000)
    rows = [row | {"text": row["text"] + padding} for row in keyword(300)]
    turned = set(range(0, 300, 30))
    for i in turned:
        rows[i]["label"] = "praise" if rows[i]["label"] == "complaint" else "complaint"
    found = noise_candidates(TASK, examples(rows))
    # Only rows that another class's own rows would be glad to have are candidates: half are found, and no others.
    assert set(found.rows) <= turned and len(found.rows) >= len(turned) / 2


def test_the_minimum_detectable_difference_is_the_published_one():
    # Two-sided at 5 % with 10 % discordance: 8.9 points of 100 items, 2.0 of 2000.
    assert abs(minimum_detectable(100, 0.975) - 0.0886) < 1e-3
    assert abs(minimum_detectable(2000, 0.975) - 0.0198) < 1e-3


def test_noise_in_the_data_does_not_stop_the_splits():
    assert make_splits(TASK, examples(noisy(200))).parts["test"]
