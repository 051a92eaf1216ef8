"""Every item is proved: its witness is accepted, nothing else is by accident, and what cannot be solved is known."""

from __future__ import annotations

import math
import random

import pytest

from inazuma.errors import UserError
from inazuma.evaluate.task import check_items
from inazuma.evaluate.tasks import FAMILIES, hanoi, make_tasks, non_lexical, river_crossing
from inazuma.evaluate.tasks.hanoi import Hanoi
from inazuma.evaluate.tasks.river_crossing import RiverCrossing

TASKS = make_tasks(["long-context", "hanoi", "river-crossing"], lengths=[1024], count=20)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_gold_is_right_and_nothing_is_wrong(task):
    items = task.items(0)
    check_items(items)
    assert items == task.items(0)
    for item in items:
        assert task.judge("", item.target) == task.judge("I do not know.\n", item.target)
        assert task.judge("", item.target).score == 0 and task.judge("", item.target).extracted is None
        if item.witness is None:
            assert item.impossible
            continue
        for answer in (item.witness, item.witness + "\n", f"\n{item.witness} \nand so on"):
            judged = task.judge(answer, item.target)
            assert judged.score == 1 and judged.extracted, (item.id, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_chance_is_what_guesses_and_shuffled_answers_get(family):
    task = FAMILIES[family](1024, 80)
    items, draw = task.items(1), random.Random(0)
    guessed = [
        task.judge(f" {draw.choice(item.guesses)}", item.target).score
        for item in items
        for _ in range(10)
        if item.guesses
    ]
    chance = items[0].chance
    if guessed:
        # Guesses at one item are not independent where an item has few: the noise is that of the items.
        assert abs(sum(guessed) / len(guessed) - chance) < 4 * math.sqrt(chance * (1 - chance) / len(guessed)) + 1e-9
    answers = [item.witness for item in items]
    shuffled = [task.judge(answers[i - 1], item.target).score for i, item in enumerate(items)]
    assert sum(shuffled) / len(shuffled) < chance + 4 * math.sqrt(chance / len(shuffled)) + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1024, 4096])
def test_lengths_and_what_lies_in_the_text(family, length):
    task = FAMILIES[family](length, 5)
    for item in task.items(2):
        size = len(item.prompt.encode())
        assert 4 * length - 120 < size <= 4 * length
        if family == "counting":
            asked = item.prompt.split("how many times ")[1].split(" does")[0]
            assert item.prompt.count(f"{asked} rang the bell.") == int(item.target)
        elif family == "variable-tracking":
            values = dict(line.split(" = ") for line in item.prompt.splitlines() if " = " in line)
            value = item.prompt.split("What number is ")[1].split("?")[0]
            while value in values:
                value = values[value]
            assert value == item.target
        elif family == "sorting":
            ages = {line.split()[0]: int(line.split()[2]) for line in item.prompt.splitlines() if "years old" in line}
            assert item.target == " ".join(sorted(ages, key=ages.get))
        elif family == "non-lexical-recall":
            country = item.prompt.split("been to ")[1].split("?")[0]
            [place] = [place for place, where in non_lexical.LANDMARKS.items() if where == country]
            assert f"{item.target} once stood in front of {place}." in item.prompt
            assert country not in item.prompt.rsplit("Who has", 1)[0]
        else:
            key = item.prompt.split("the number of ")[-1].split("?")[0]
            assert f"The number of {key} is {item.target}." in item.prompt


def test_the_single_needle_lies_at_every_depth():
    where = []
    for item in FAMILIES["single-key-recall"](4096, 5).items(0):
        where.append(item.prompt.index("The number of") / len(item.prompt))
    assert where == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.02)


def test_other_seeds_are_other_items():
    task = FAMILIES["counting"](1024, 3)
    assert {item.hash for item in task.items(0)}.isdisjoint(item.hash for item in task.items(1))


def test_river_crossing_has_no_solution_from_six_pairs_on_in_a_boat_for_three():
    shortest = {n: river_crossing.solve(n, 3) for n in range(2, 8)}
    assert [None if found is None else len(found) for found in shortest.values()] == [3, 5, 9, 11, None, None]
    assert river_crossing.solve(6, 4) is not None
    refused = [item.id for item in RiverCrossing().items(0) if item.impossible]
    assert refused == ["4-pairs-boat-2", "5-pairs-boat-2", "6-pairs-boat-2", "6-pairs-boat-3"]


def test_what_river_crossing_does_not_allow():
    judge, goal = RiverCrossing().judge, {"pairs": 2, "boat": 2}
    right = "A1+a1 A1 A1+A2 a1 a1+a2"
    assert judge(right, goal).score == 1
    # Too many in the boat; not all over; a1 with A2 in the boat, and on the bank; nobody of this name; not there.
    for wrong in ("a1+A1+a2+A2", right[:-6], "a1+A2 A2", "A2 A2", "a9", "A1+a1 A2", right + " a1"):
        assert judge(wrong, goal).score == 0, wrong


def test_hanoi_needs_two_to_the_n_minus_one_moves():
    for discs in range(1, 11):
        moves = [a + b for a, b in hanoi.solve(discs, "A", "C")]
        assert len(moves) == 2**discs - 1
        assert hanoi.reaches(discs, "A", "C", moves)
        assert not hanoi.reaches(discs, "A", "C", moves[:-1])
    assert not hanoi.reaches(2, "A", "C", ["AC", "AC"])  # a disc onto a smaller one
    assert not hanoi.reaches(1, "A", "C", ["BC"])  # from an empty peg
    assert Hanoi().judge("AB -> AC", {"discs": 2, "from": "A", "to": "C"}).score == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make_tasks(["chess"], lengths=[1024], count=1), "unknown task 'chess'; known are bits-per-byte"),
        (lambda: make_tasks(["counting"], lengths=[100], count=1), "no room for the questions"),
        (lambda: make_tasks(["counting"], lengths=[1024], count=0), "0 items at a length are none"),
        (lambda: Hanoi(range(1, 40)), "discs lies in 1..16"),
        (lambda: RiverCrossing(range(2, 30)), "pairs lies in 1..7"),
        (lambda: check_items([]), "no items"),
        (lambda: check_items(TASKS[0].items(0)[:1] * 2), "two items have the id '0-depth-0'"),
    ],
)
def test_mistakes_are_named(call, says):
    with pytest.raises(UserError, match=says):
        call()
