"""Rules V01 to V08, V11, V21, V22, V24, which look at answers: each on a planted flaw and on the twin without it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inazuma.evaluate.audit.declared import Declared, Texts
from inazuma.evaluate.audit.log import Sample, Study
from tests.evaluate.audit.studies import log, one, sample, samples, score, study, task, verdict

Maker = Callable[[Path], Study]
PAIRS: dict[str, tuple[Maker, Maker]] = {}


def cut(at: int, **facts: object) -> Sample:
    return sample(at, False, stop="length", generated_tokens=64, answer="First, seven and", extracted=None, **facts)


PAIRS["V01 cut"] = (
    lambda _: one([*samples(70, 95), *map(cut, range(95, 100))]),
    # One in a hundred is tolerated; an answer that was right before it was cut off is right.
    lambda _: one([*samples(70, 95), cut(95), *(replace(cut(at), score=1.0) for at in range(96, 100))]),
)
PAIRS["V01 lengths alone"] = (
    lambda _: one([*samples(30, 40, stop=None, outcome=None), *(replace(cut(at), stop=None) for at in range(40, 50))]),
    lambda _: one(samples(30, 50, stop=None, outcome=None)),
)
PAIRS["V01 every answer the same length"] = (
    lambda _: one(samples(3, 40, stop="unknown", generated_tokens=16, max_tokens=2048)),
    lambda _: one(samples(3, 40, stop="end", generated_tokens=16, max_tokens=2048)),
)
PAIRS["V01 bounds"] = (
    lambda _: one([*samples(70, 90), *(cut(at, outcome="truncated") for at in range(90, 100))]),
    lambda _: one(
        some := [*samples(70, 90), *(cut(at, outcome="truncated") for at in range(90, 100))],
        scores=(score(some, bounds=(0.7, 0.8)),),
    ),
)
PAIRS["V02 dropped"] = (
    lambda _: one([*samples(30, 49), sample(49, False, prompt_tokens_dropped=300)]),
    lambda _: one([*samples(30, 49), sample(49, score=None, outcome="invalid_item", prompt_tokens_dropped=300)]),
)
PAIRS["V02 window"] = (
    lambda _: one([*samples(30, 49), sample(49, False, stop="context")]),
    lambda _: one(samples(30, 50)),
)
PAIRS["V03 declared"] = (
    lambda _: one([sample(at, min_answer_tokens=65 if at == 3 else 60) for at in range(20)]),
    lambda _: one([sample(at, min_answer_tokens=64) for at in range(20)]),
)


def hanoi(discs: int, **facts: object) -> Sample:
    asked = f"Solve the Tower of Hanoi with {discs} disks and list all moves."
    return sample(discs, prompt=asked, question=asked, max_tokens=64_000, target="moves", **facts)


PAIRS["V03 Hanoi"] = (
    # 2^14 - 1 = 16,383 moves at 5 tokens do not fit 64,000; 2^13 - 1 = 8,191 do.
    lambda _: one([hanoi(n) for n in range(3, 15)]),
    lambda _: one([*(hanoi(n) for n in range(3, 14)), replace(hanoi(14), outcome="invalid_item", score=None)]),
)
PAIRS["V03 a program is short"] = (
    lambda _: one([hanoi(n) for n in range(3, 21)]),
    lambda _: one(
        [replace(hanoi(n), question=f"Write a program that prints the moves of Hanoi with {n} disks") for n in (3, 20)]
    ),
)


def crossing(at: int, pairs: int, boat: int, **facts: object) -> Sample:
    asked = f"{pairs} actors and their {pairs} agents cross a river. The boat holds at most {boat} people."
    return sample(at, prompt=asked, question=asked, witness=None, **facts)


PAIRS["V04 river crossing"] = (
    lambda _: one([crossing(at, pairs, 3) for at, pairs in enumerate((2, 3, 4, 5, 6))]),
    lambda _: one([crossing(0, 5, 3), crossing(1, 6, 4), crossing(2, 6, 3, outcome="invalid_item", score=None)]),
)
PAIRS["V04 no witness"] = (
    lambda _: one([*samples(5, 9), sample(9, witness=False)]),
    lambda _: one(samples(5, 10)),
)


def choice(at: int, right: bool = True, **facts: object) -> Sample:
    texts = (str(7 * at), str(7 * at + 1), str(7 * at + 2))
    return sample(at, right, **({"choices": texts, "gold": 0, "chance": 1 / 3} | facts))


PAIRS["V05 key outside"] = (
    lambda _: one([*(choice(at) for at in range(20)), choice(20, gold=3)]),
    lambda _: one([choice(at) for at in range(21)]),
)
PAIRS["V05 key not a choice"] = (
    lambda _: one([*(choice(at) for at in range(20)), choice(20, gold=None, target="999")]),
    lambda _: one([*(choice(at) for at in range(20)), choice(20, gold=None, target="B")]),
)
PAIRS["V05 key twice"] = (
    lambda _: one([choice(at, choices=("4", "4", "5") if at == 9 else ("4", "6", "5")) for at in range(20)]),
    # Which of two spellings is right may be the question.
    lambda _: one([choice(at, choices=("Cat", "cat", "CAT") if at == 9 else ("4", "6", "5")) for at in range(20)]),
)
PAIRS["V05 two keys"] = (
    lambda _: one([*samples(15, 20), replace(sample(3), item="again", target="22")]),
    lambda _: one([*samples(15, 20), replace(sample(3), item="again")]),
)


def strong(name: str, said: str) -> object:
    some = [sample(at, at >= 4) for at in range(60)]
    some[2] = sample(2, False, answer=said, extracted=said)
    return log(task(some), name=name, model=name)


PAIRS["V05 three models agree against the key"] = (
    lambda _: study(strong("a", "41"), strong("b", "41"), strong("c", "41")),
    lambda _: study(
        *(
            replace(strong(name, said), tasks=(task(_spread(name, said)),))
            for name, said in zip("abc", "123", strict=True)
        )
    ),
)


def _spread(name: str, said: str) -> list[Sample]:
    """Wrong on the same items, each in its own way."""
    return [
        sample(at, at >= 4, **({"answer": f"{said}{at}", "extracted": f"{said}{at}"} if at < 4 else {}))
        for at in range(60)
    ]


PAIRS["V06 spelling"] = (
    lambda _: one([*samples(30, 40), sample(40, False, extracted="280.0", answer="280.0")]),
    lambda _: one([*samples(30, 40), sample(40, False, extracted="281", answer="281")]),
)
PAIRS["V06 second reading"] = (
    lambda _: one([sample(at, at >= 3, **_first_number(at, at < 3)) for at in range(1, 60)]),
    # The key in passing, another answer at the end.
    lambda _: one([sample(at, at >= 3, **_in_passing(at, at < 3)) for at in range(1, 60)]),
)


def _first_number(at: int, missed: bool) -> dict[str, str]:
    return {"answer": f"7 times {at} is {7 * at}", "extracted": "7"} if missed else {}


def _in_passing(at: int, missed: bool) -> dict[str, str]:
    return (
        {"answer": f"Perhaps {7 * at}? No. The answer is {7 * at + 1}.", "extracted": str(7 * at + 1)} if missed else {}
    )


PAIRS["V06 empty is right"] = (
    lambda _: one([*samples(30, 40), sample(40, answer=" ")]),
    lambda _: one([*samples(30, 40), sample(40, False, answer=" ", extracted=None)]),
)


PAIRS["V06 nothing extracted"] = (
    lambda _: one([*samples(30, 40, outcome=None), *(_unextracted(at, None) for at in range(40, 43))]),
    # Where it has an outcome of its own, it is reported.
    lambda _: one([*samples(30, 40), *(_unextracted(at, "no_answer") for at in range(40, 43))]),
)


def _unextracted(at: int, outcome: str | None) -> Sample:
    return sample(at, False, answer="I would rather not say.", extracted="[invalid]", outcome=outcome)


def texts(folder: Path, **lists: list[str]) -> None:
    for name, lines in lists.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))


def split(folder: Path, test: str, train: str = "the cat sat on the mat and looked at the moon all night") -> Study:
    texts(
        folder,
        train=[train],
        test=[test, "something else entirely"],
    )
    declared = Declared(texts=Texts(train_split=[Path("train.jsonl")], test_split=[Path("test.jsonl")]))
    return study(log(task(samples(30, 40))), path=folder, declared=declared)


PAIRS["V07 near duplicate"] = (
    lambda folder: split(folder, "The cat sat on the mat and looked at the moon all week."),
    lambda folder: split(folder, "a dog lay under the table and slept through the whole long afternoon"),
)


PAIRS["V07 near duplicate without spaces"] = (
    lambda folder: split(
        folder,
        "昨日の朝に私は駅前の古い喫茶店で友人と長い時間話をしていた。",
        train="昨日の朝、私は駅前の古い喫茶店で友人と長い時間話をしていた",
    ),
    lambda folder: split(
        folder, "明日は山の上で雪が降ると聞いた。", train="昨日の朝、私は駅前の古い喫茶店で友人と長い時間話をしていた"
    ),
)


def split_of(folder: Path, group: str, fitted_on: str) -> Study:
    made = split(folder, "a dog lay under the table and slept through the whole long afternoon")
    for name, who in (("train", "ann"), ("test", group)):
        line = {"text": f"what {name} holds is about other things", "group": who}
        (folder / f"{name}.jsonl").write_text(json.dumps(line))
    return replace(made, declared=Declared(texts=replace(made.declared.texts, fitted_on=[fitted_on])))


PAIRS["V07 groups"] = (lambda f: split_of(f, "ann", "train"), lambda f: split_of(f, "bob", "train"))
PAIRS["V07 fitted"] = (lambda f: split_of(f, "bob", "all"), lambda f: split_of(f, "bob", "train"))


def with_examples(folder: Path, shown: int) -> Study:
    some = [
        replace(s, prompt=f"What is the product of seven and {shown}? {7 * shown}\n\n{s.question}")
        for s in samples(30, 40)
    ]
    made = split(folder, "a dog lay under the table and slept through the whole long afternoon")
    return replace(made, logs=(log(task(some, fewshot=1)),))


PAIRS["V07 examples"] = (lambda f: with_examples(f, 12), lambda f: with_examples(f, 1200))


def trained_on(folder: Path, text: str) -> Study:
    texts(folder, corpus=["nothing of interest here", text])
    declared = Declared(texts=Texts(pretraining=[Path("corpus.jsonl")]))
    asked = "Which of the seven bridges over the river did the old miller cross on the day of the flood?"
    some = [replace(s, question=f"{asked} Choose number {s.item}.") for s in samples(30, 40)]
    return study(log(task(some)), path=folder, declared=declared)


PAIRS["V08 13 words"] = (
    lambda f: trained_on(f, "say WHICH of the seven bridges, over the river, did the old miller cross on it"),
    lambda f: trained_on(f, "say which of the seven bridges over the river did the old baker cross on it"),
)


def passages(stderr: float | None) -> Study:
    """20 passages with 5 questions each: a passage is answered whole or not at all."""
    some = [replace(sample(at, at // 5 < 12), cluster=f"p{at // 5}") for at in range(100)]
    return one(some, scores=(score(some, **({} if stderr is None else {"stderr": stderr})),))


PAIRS["V11 passages"] = (
    lambda _: passages(None),
    # The standard error of 20 passages' means of 0 or 1.
    lambda _: passages(math.sqrt(0.6 * 0.4 / 19)),
)


def repeats(**facts: float) -> Study:
    """50 items asked four times, each with the same answer every time."""
    some = [replace(sample(at, at < 30), repeat=r) for at in range(50) for r in range(4)]
    return one(some, scores=(score(some, **facts),))


PAIRS["V11 repeats"] = (lambda _: repeats(), lambda _: repeats(stderr=math.sqrt(0.6 * 0.4 / 49)))
PAIRS["V21 field"] = (
    lambda _: one([*samples(30, 49), sample(49, False, error="connection reset", answer="")]),
    lambda _: one([*samples(30, 49), sample(49, outcome="infrastructure_error", score=None, error="connection reset")]),
)
PAIRS["V21 text"] = (
    lambda _: one([*samples(30, 49), sample(49, False, answer="Error code: 503 - overloaded", outcome=None)]),
    lambda _: one([*samples(30, 49), sample(49, False, answer="It returns an error code: 503.", outcome=None)]),
)


def reported(n: int = 400, right: int = 240, **facts: object) -> Study:
    some = samples(right, n)
    return one(some, scores=(score(some, **facts),))


CLOSED = math.sqrt(0.6 * 0.4 / 399)
PAIRS["V22 zero"] = (lambda _: reported(stderr=0.0), lambda _: reported(400, 400))
PAIRS["V22 root of the draws"] = (
    lambda _: reported(stderr=CLOSED / math.sqrt(1000)),
    lambda _: reported(stderr=CLOSED),
)
PAIRS["V22 standard deviation"] = (
    lambda _: reported(stderr=math.sqrt(0.24)),
    lambda _: reported(stderr=round(CLOSED, 3)),
)
PAIRS["V22 mean"] = (lambda _: reported(value=0.63), lambda _: reported(value=0.6))
PAIRS["V22 interval"] = (
    lambda _: reported(stderr=None, interval=(0.59, 0.61)),
    lambda _: reported(stderr=None, interval=(0.551, 0.647)),
)
PAIRS["V22 without samples"] = (
    lambda _: study(log(replace(task(samples(6, 10)), samples=(), scores=(score(samples(6, 10), stderr=0.0),)))),
    lambda _: study(log(replace(task(samples(6, 10)), samples=(), scores=(score(samples(6, 10)),)))),
)
PAIRS["V22 interval beside the score"] = (
    lambda _: reported(stderr=None, interval=(0.61, 0.71)),
    lambda _: reported(stderr=None, interval=(0.551, 0.647)),
)
PAIRS["V22 root of the draws, without samples"] = (
    lambda _: unsampled(stderr=CLOSED / math.sqrt(1000)),
    lambda _: unsampled(stderr=CLOSED),
)


def unsampled(**facts: float) -> Study:
    some = samples(240, 400)
    return study(log(replace(task(some), samples=(), scores=(score(some, **facts),))))


PAIRS["V24 chance"] = (
    lambda _: one([choice(at, at < 38) for at in range(100)]),
    lambda _: one([choice(at, at < 50) for at in range(100)]),
)
PAIRS["V24 ceiling"] = (lambda _: reported(400, 400), lambda _: reported(400, 390))
PAIRS["V24 floor"] = (lambda _: reported(400, 0), lambda _: reported(400, 4))
PAIRS["V24 nothing of few"] = (
    lambda _: one(samples(0, 20, chance=0.0)),
    lambda _: one(samples(0, 11, chance=0.0)),
)


def yes_no(share: int, right: int) -> Study:
    keys = ["yes" if at < share else "no" for at in range(200)]
    some = [
        sample(at, at < right, target=key, choices=("yes", "no"), gold=0, chance=0.5) for at, key in enumerate(keys)
    ]
    return one(some)


PAIRS["V24 majority"] = (lambda _: yes_no(150, 155), lambda _: yes_no(150, 180))


@pytest.mark.parametrize("name", PAIRS)
def test_planted_flaw_and_clean_twin(name: str, tmp_path: Path) -> None:
    rule = name[:3]
    flawed, twin = PAIRS[name]
    assert verdict(rule, flawed(tmp_path)) == "findings"
    assert verdict(rule, twin(tmp_path)) == "clean"


@pytest.mark.parametrize(
    ("rule", "made"),
    [
        ("V01", one(samples(30, 40, stop=None, outcome=None, generated_tokens=None))),
        ("V02", one(samples(30, 40, stop=None, prompt_tokens_dropped=None))),
        ("V02", study(log(task(samples(30, 40, prompt_tokens_dropped=None)), format="inazuma"))),
        ("V04", one(samples(30, 40, witness=None))),
        ("V05", one(samples(30, 40, target=None))),
        ("V06", one(samples(30, 40, target=None))),
        ("V07", one(samples(30, 40))),
        ("V08", one(samples(30, 40))),
        ("V09", one(samples(30, 40))),
        ("V11", one(samples(30, 40))),
        ("V14", one(samples(30, 40))),
        ("V19", one(samples(30, 40))),
    ],
)
def test_what_a_log_does_not_hold_is_undecided_never_clean(rule: str, made: Study) -> None:
    assert verdict(rule, made) == "undecided"
