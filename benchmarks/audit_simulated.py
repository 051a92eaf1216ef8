"""Simulated evaluations: items, a model that answers some of them, and what an honest report says of it.

Nothing here knows the audit's thresholds. A model's chance on an item is a logistic function of its ability and of the
item's difficulty, so that two models err on the same hard items.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.evaluate.audit.log import Log, Sample, Score, Task

MODELS = ("acme/larch-1b", "acme/rowan-7b", "north/alder-3b", "meadow/hazel-13b", "local/yew-350m", "tarn/birch-2b")
NAMES = ["Arvo", "Bela", "Cato", "Dara", "Edda", "Finn", "Gala", "Hugo", "Iris", "Juno", "Kuno", "Lara", "Milo", "Nora"]
THINGS = ["lanterns", "anchors", "ribbons", "kettles", "marbles", "feathers", "buttons", "candles", "acorns", "shells"]
PLACES = [
    "Tarnwick",
    "Oldmere",
    "Ravensby",
    "Highcombe",
    "Eastfold",
    "Millbrook",
    "Stonegate",
    "Fairwater",
    "Coldharbour",
]
Random = np.random.Generator


def pick(random: Random, options: Any) -> Any:
    return options[int(random.integers(len(options)))]


def sums(random: Random, n: int) -> list[Sample]:
    """Word problems with a whole number as key; every question is another."""
    items, seen = [], set()
    while len(items) < n:
        name, thing = pick(random, NAMES), pick(random, THINGS)
        a, b, place = int(random.integers(11, 990)), int(random.integers(11, 990)), pick(random, PLACES)
        question = f"In {place}, {name} has {a} {thing} and finds {b} more. How many {thing} does {name} have now?"
        if question not in seen:
            seen.add(question)
            items.append(Sample(str(len(items)), question=question, target=str(a + b)))
    return items


def choices(random: Random, n: int, width: int = 4) -> list[Sample]:
    """Questions with one key among a few numbers, at any place."""
    items = []
    for item in sums(random, n):
        right = int(item.target or 0)
        others = random.choice([d for d in range(-9, 10) if d], size=width - 1, replace=False)
        options = [right, *(right + int(d) for d in others)]
        order = random.permutation(width)
        texts = tuple(str(options[i]) for i in order)
        items.append(replace(item, choices=texts, gold=int(np.argmin(order)), chance=1 / width))
    return items


def labels(random: Random, n: int, share: float = 0.5) -> list[Sample]:
    """Yes/no questions about two numbers; `share` of the keys is yes."""
    items = []
    for i in range(n):
        a, b = sorted(int(x) for x in random.choice(9000, size=2, replace=False))
        yes = random.random() < share
        first, second = (b, a) if yes else (a, b)
        question = f"Record {i}: is {first} the larger number of {first} and {second}? Answer yes or no."
        options = ("yes", "no")
        items.append(
            Sample(str(i), question=question, target="yes" if yes else "no", choices=options, gold=1 - int(yes))
        )
    return [replace(item, chance=0.5) for item in items]


def difficulties(random: Random, n: int) -> np.ndarray:
    return random.normal(0, 1.5, n)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


STYLES = ("{0}", "The answer is {0}.", "Let me add these up step by step. So the answer is {0}.", "That makes {0}.",
          "First I add the two numbers.\n#### {0}", "\\boxed{{{0}}}")  # fmt: skip


def respond(
    random: Random,
    items: list[Sample],
    ability: float,
    *,
    hard: np.ndarray | None = None,
    style: str | None = None,
    limit: int = 512,
    instruction: str = "Answer the question.",
) -> list[Sample]:
    """The items with prompts, answers, lengths well below the limit, and right scores."""
    hard = difficulties(random, len(items)) if hard is None else hard
    style = style or pick(random, STYLES)
    answered = []
    for item, difficulty in zip(items, hard, strict=True):
        right = random.random() < logistic(ability - difficulty)
        if item.choices and item.gold is not None:
            others = [i for i in range(len(item.choices)) if i != item.gold]
            said = item.choices[item.gold if right else pick(random, others)]
        else:
            said = item.target if right else str(int(item.target or 0) + int(random.integers(1, 40)))
        prompt = f"{instruction}\n\nQuestion: {item.question}\nAnswer:"
        text = style.format(said)
        answered.append(
            replace(
                item,
                score=float(right),
                outcome="correct" if right else "wrong",
                prompt=prompt,
                answer=text,
                extracted=said,
                stop="end",
                prompt_tokens=len(prompt) // 4,
                prompt_tokens_dropped=0,
                generated_tokens=max(1, int(len(text) / 3.5 + random.integers(0, 12))),
                max_tokens=limit,
            )
        )
    return answered


def ability_for(accuracy: float) -> float:
    """The ability that gives about this accuracy at the difficulties above (logistic-normal approximation)."""
    return math.log(accuracy / (1 - accuracy)) * math.sqrt(1 + 0.346 * 1.5**2)


METRIC = {"inazuma": "score", "lm-eval": "exact_match", "inspect": "accuracy", "inspect-json": "accuracy",
          "lighteval": "em", "helm": "exact_match"}  # fmt: skip


def reported(samples: list[Sample], form: str, *, stderr: bool = True) -> Score:
    """The mean and its standard error, with Wilson's interval where the format has one."""
    from scipy import stats

    x = np.array([s.score for s in samples if s.score is not None])
    error = float(x.std(ddof=1) / math.sqrt(len(x)))
    interval = None
    if form == "inazuma" and stderr:
        found = stats.binomtest(int(x.sum()), len(x)).proportion_ci(method="wilson")
        interval = (float(found.low), float(found.high))
    keep = stderr and form != "helm"
    return Score(METRIC[form], float(x.mean()), error if keep else None, interval, len(x))


def log_of(
    samples: list[Sample],
    form: str,
    *,
    model: str,
    task: str = "sums",
    name: str = "log",
    score: Score | None = None,
    generates: bool = True,
    **rest: Any,
) -> Log:
    keys = ("fewshot", "family", "judge", "scorer")
    of_task = {key: rest.pop(key) for key in keys if key in rest}
    scores = (score or reported(samples, form),)
    made = Task(task, tuple(samples), scores, generates, **of_task)
    return Log(Path(name), form, None, model, (made,), **rest)
