"""Logs with one planted flaw each: for every rule a function that writes the i-th variant, of another size, format and
severity. Severities are drawn over the range that has been published or plausible, the harmless end included; they do
not look at what the audit tolerates, so that what it tolerates shows as a miss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.audit_logs import FORMATS, write
from benchmarks.audit_simulated import (
    MODELS,
    Random,
    ability_for,
    choices,
    difficulties,
    log_of,
    pick,
    reported,
    respond,
    sums,
)
from inazuma.evaluate.audit.log import Sample

Planter = Callable[[Random, Path, int], None]
PLANTERS: dict[str, Planter] = {}


def plants(rule: str) -> Callable[[Planter], Planter]:
    def register(function: Planter) -> Planter:
        PLANTERS[rule] = function
        return function

    return register


def declare(folder: Path, **facts: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(facts, allow_unicode=True), encoding="utf-8")


def size(random: Random, low: int = 40, high: int = 600) -> int:
    return int(math.exp(random.uniform(math.log(low), math.log(high))))


def some_of(random: Random, n: int, share: float) -> set[int]:
    """At least one of n, about this share."""
    return {int(i) for i in random.choice(n, size=max(1, round(share * n)), replace=False)}


def share(random: Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def good(random: Random, n: int, **rest: Any) -> list[Sample]:
    return respond(random, sums(random, n), ability_for(float(random.uniform(0.45, 0.85))), **rest)


def wrong(sample: Sample, **changes: Any) -> Sample:
    return replace(sample, score=0.0, outcome="wrong", **changes)


@plants("V01")
def output_limit(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random)
    limit = pick(random, [16, 64, 256, 2048])
    samples = good(random, n, limit=limit)
    for at in some_of(random, n, share(random, 0.003, 0.6)):
        text = "Let me think about this carefully, one step after the other. First of all " * 3
        samples[at] = wrong(samples[at], answer=text, extracted=None, generated_tokens=limit, stop="length")
    write(log_of(samples, form, model=pick(random, MODELS)), folder, form)


@plants("V02")
def prompt_truncated(random: Random, folder: Path, i: int) -> None:
    form = ("inazuma", "lighteval", "helm", "inspect", "lm-eval")[i % 5]
    n = size(random)
    samples = good(random, n)
    for at in some_of(random, n, share(random, 0.004, 0.9)):
        lost = int(random.integers(1, 4000))
        stop = "context" if form == "inspect" else "end"
        samples[at] = wrong(
            samples[at], prompt_tokens_dropped=lost, stop=stop, answer="I see no question.", extracted=None
        )
    write(log_of(samples, form, model=pick(random, MODELS)), folder, form)


@plants("V03")
def budget(random: Random, folder: Path, i: int) -> None:
    form = FORMATS[i % len(FORMATS)]
    if i % 2:  # Tower of Hanoi, moves written out, beyond what the limit holds
        limit = pick(random, [512, 4096, 16384, 64000])
        fits = int(math.log2(limit / 10))
        items = []
        for at, discs in enumerate([*range(3, fits + 1), *range(fits + 1, fits + 4)]):
            asked = f"Solve the Tower of Hanoi with {discs} disks. List all moves as [disk, from, to]."
            right = discs <= fits and discs < 8
            items.append(
                Sample(
                    str(at),
                    question=asked,
                    prompt=asked,
                    answer="moves = [[1, 0, 2], ...]",
                    score=float(right),
                    outcome="correct" if right else "wrong",
                    stop="end" if right else "length",
                    max_tokens=limit,
                    target="all moves",
                    generated_tokens=10 * (2**discs - 1) if right else limit,
                )
            )
    else:  # copying a text longer than the limit
        limit = pick(random, [32, 128, 512])
        items = []
        for at in range(size(random, 12, 80)):
            words = int(limit * random.uniform(0.2, 2.5))
            text = " ".join(pick(random, ["amber", "birch", "cedar", "delta", "ember"]) for _ in range(words))
            over = words > limit
            items.append(
                Sample(
                    str(at),
                    question=f"Copy text {at}: {text}",
                    prompt=f"Copy text {at}: {text}",
                    target=text,
                    answer=text[: 4 * limit] if over else text,
                    score=float(not over),
                    max_tokens=limit,
                    outcome="wrong" if over else "correct",
                    stop="length" if over else "end",
                    generated_tokens=limit if over else words,
                    min_answer_tokens=words if form == "inazuma" else None,
                )
            )
    write(log_of(items, form, model=pick(random, MODELS), task="puzzle"), folder, form)


@plants("V04")
def unsolvable(random: Random, folder: Path, i: int) -> None:
    form = FORMATS[i % len(FORMATS)]
    wordings = (
        "{n} actors and their {n} agents must cross a river. The boat holds at most {k} people. No actor may be with "
        "another agent unless their own agent is present. List the crossings.",
        "River crossing: {n} missionaries and {n} cannibals want to get to the other bank; the boat can carry up "
        "to {k}. "
        "Cannibals must never outnumber missionaries. Give the moves.",
        "Solve the river crossing puzzle for N = {n} pairs and a boat of capacity {k}.",
        "You have jugs of {a} and {b} litres and a tap. Measure exactly {c} litres.",
        "Place {q} queens on a {q} by {q} board such that none attacks another ({q}-queens).",
        "Slide the tiles of this 3x3 puzzle into order: 1 2 3 4 5 6 8 7 0.",  # an odd permutation: impossible
    )
    wording = wordings[i % len(wordings)]
    items = []
    for at in range(size(random, 8, 60)):
        bad = at % int(random.integers(2, 6)) == 0 or at == 0
        n, k = ((6 + at % 5, 3) if random.random() < 0.7 else (4 + at % 3, 2)) if bad else (2 + at % 4, 3 + at % 2)
        a, b, c = (4 * (1 + at % 9), 4 * (2 + at % 7), 4 * (at % 3) + 2) if bad else (3, 5, 1 + at % 5)
        asked = wording.format(n=n, k=k, a=a, b=b, c=c, q=pick(random, [2, 3]) if bad else 4 + at % 8)
        if "tiles" in wording and not bad:
            asked = "Slide the tiles of this 3x3 puzzle into order: 1 2 3 4 5 6 7 0 8."
        items.append(
            Sample(
                str(at),
                question=asked,
                prompt=asked,
                answer="[...]",
                target="a valid plan",
                stop="end",
                score=float(not bad and random.random() < 0.7),
                max_tokens=16000,
                generated_tokens=800,
            )
        )
    items = [replace(item, outcome="correct" if item.score else "wrong") for item in items]
    write(log_of(items, form, model=pick(random, MODELS), task="puzzles"), folder, form)


@plants("V05")
def wrong_keys(random: Random, folder: Path, i: int) -> None:
    n, kind = size(random, 40, 400), i % 5
    bad = some_of(random, n, share(random, 0.003, 0.12))
    if kind == 0:  # the key points outside the choices
        form = ("inazuma", "lighteval", "lm-eval")[i % 3]
        samples = respond(random, choices(random, n), 1.5)
        for at in bad:
            samples[at] = wrong(samples[at], gold=len(samples[at].choices or ()) + 1)
            if form == "inazuma":  # which has the key as a text
                samples[at] = replace(samples[at], target=str(int(samples[at].target or 0) + 50))
    elif kind == 1:  # the key stands twice among the choices
        form = FORMATS[i % len(FORMATS)]
        samples = respond(random, choices(random, n), 1.5)
        for at in bad:
            texts, gold = list(samples[at].choices or ()), samples[at].gold or 0
            texts[(gold + 1) % 4] = texts[gold]
            samples[at] = replace(samples[at], choices=tuple(texts))
    elif kind == 2:  # the same question with two keys
        form = FORMATS[i % len(FORMATS)]
        items = sums(random, n)
        items += [replace(items[at], item=f"{at}-again", target=str(int(items[at].target or 0) + 1)) for at in bad]
        samples = respond(random, items, 1.5)
    elif kind == 3:  # three strong models agree against the key
        form = pick(random, ["inazuma", "inspect", "helm"])
        items = sums(random, n)
        hard = difficulties(random, n)
        for number, model in enumerate(MODELS[:3]):
            answered = respond(random, items, ability_for(0.93), hard=hard, style="{0}")
            for at in bad:
                truth = str(int(items[at].target or 0) - 10)
                answered[at] = wrong(answered[at], answer=truth, extracted=truth)
            write(log_of(answered, form, model=model, name=f"model-{number}"), folder / f"{number}", form)
        return
    else:  # keys that are simply wrong, seen by one model only
        form = FORMATS[i % len(FORMATS)]
        samples = respond(random, sums(random, n), 1.5)
        samples = [wrong(s, target=str(int(s.target or 0) + 3)) if at in bad else s for at, s in enumerate(samples)]
    made = log_of(samples, form, model=pick(random, MODELS), generates=kind not in (0, 1) or form != "lm-eval")
    write(made, folder, form)


@plants("V06")
def extraction(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random)
    style = pick(
        random,
        [
            "The answer is {0}.",
            "\\boxed{{{0}}}",
            "Adding them up.\n#### {0}",
            "{0}",
            "so we get {0} in total, I believe",
        ],
    )
    samples = good(random, n, style=style)
    right = [at for at, sample in enumerate(samples) if sample.score == 1]
    hit = random.choice(right, size=max(1, round(share(random, 0.01, 0.5) * len(right))), replace=False)
    for at in map(int, hit):
        sample, kind = samples[at], i % 3
        if kind == 0:  # the right answer in another spelling is extracted and not recognised
            number = int(sample.target or 0)
            said = pick(random, [f"{number}.0", f"{number}.", f" {number} ", f"${number}"])
            samples[at] = wrong(sample, extracted=said, answer=style.format(said))
        elif kind == 1:  # the extractor takes the first number instead of the last
            first = (sample.question or "").split(" has ")[1].split()[0]
            samples[at] = wrong(sample, extracted=first)
        else:  # nothing is extracted
            samples[at] = wrong(sample, extracted="[invalid]" if form == "lm-eval" else None)
    write(log_of(samples, form, model=pick(random, MODELS)), folder, form)


def write_texts(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@plants("V07")
def leakage(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random, 40, 300)
    items = sums(random, n)
    kind = i % 5
    if kind == 0:  # examples of the prompt are test items
        leaked = items[: int(random.integers(1, 6))]
        shots = "\n\n".join(f"Question: {item.question}\nAnswer: {item.target}" for item in leaked)
        samples = respond(random, items, 1.0, instruction=f"Answer like this.\n\n{shots}")
        write(log_of(samples, form, model=pick(random, MODELS), fewshot=len(leaked)), folder, form)
        return
    write(log_of(respond(random, items, 1.0), form, model=pick(random, MODELS), fewshot=0), folder, form)
    train = [{"text": item.question, "group": f"user-{at % 20}"} for at, item in enumerate(sums(random, 3 * n))]
    test = [{"text": item.question, "group": f"other-{at % 9}"} for at, item in enumerate(items)]
    facts: dict[str, Any] = {"train_split": ["train.jsonl"], "test_split": ["test.jsonl"], "fitted_on": ["train"]}
    if kind == 1:  # exact copies
        train += [{**test[at], "group": None} for at in some_of(random, n, share(random, 0.005, 0.3))]
    elif kind == 2:  # near duplicates: a word or two changed
        for at in some_of(random, n, share(random, 0.01, 0.3)):
            words = str(test[at]["text"]).split()
            for place in random.choice(len(words), size=int(random.integers(1, 4)), replace=False):
                words[int(place)] = pick(random, ["some", "those", "many", "soon"])
            train.append({"text": " ".join(words), "group": None})
    elif kind == 3:  # one user in both
        for at in some_of(random, n, share(random, 0.01, 0.5)):
            test[at]["group"] = f"user-{int(random.integers(20))}"
    else:
        facts["fitted_on"] = [pick(random, ["all", "test"])]
    write_texts(folder / "train.jsonl", train)
    write_texts(folder / "test.jsonl", test)
    declare(folder, texts=facts)


@plants("V08")
def contamination(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random, 40, 300)
    items = sums(random, n)
    write(log_of(respond(random, items, 1.5), form, model=pick(random, MODELS)), folder, form)
    corpus = [{"text": " ".join(s.question or "" for s in sums(random, 4))} for _ in range(60)]
    for at in some_of(random, n, share(random, 0.004, 0.5)):
        text = items[at].question or ""
        if i % 4 == 3:  # a paraphrase, which no overlap of words finds
            name = text.split(", ")[1].split(" has ")[0]
            numbers = [word for word in text.split() if word.isdigit()]
            text = f"{name} owned {numbers[0]} of them, then found another {numbers[1]}: {items[at].target} in all"
        elif i % 4 == 2:  # other case and punctuation, without the end
            text = text.upper().replace(",", " ").rsplit(" ", 3)[0]
        corpus[int(random.integers(60))]["text"] += f" {text} {items[at].target}"
    write_texts(folder / "corpus.jsonl", corpus)
    declare(folder, texts={"pretraining": ["corpus.jsonl"]})


@plants("V09")
def prompt_format(random: Random, folder: Path, i: int) -> None:
    n, kind = size(random, 60, 500), i % 3
    spread = float(random.uniform(0.02, 0.4))
    if kind == 0:  # the best template becomes the headline
        form = pick(random, ["inspect", "inazuma", "lighteval"])
        samples = good(random, n)
        write(log_of(samples, form, model=MODELS[0]), folder, form)
        best = reported(samples, form).value
        table = [best, *(best - spread * float(random.uniform(0.3, 1)) for _ in range(int(random.integers(2, 8))))]
        declare(
            folder,
            formats=[
                {
                    "model": MODELS[0],
                    "task": "sums",
                    "template": f"t{at}",
                    "score": round(max(0.0, value), 4),
                    "n": n,
                    "headline": at == 0,
                }
                for at, value in enumerate(table)
            ],
        )
    elif kind == 1:  # two models whose order turns with the template
        low = float(random.uniform(0.4, 0.6))
        declare(
            folder,
            comparisons=[{"a": "model-0", "b": "model-1", "task": "sums", "difference": 0.05}],
            formats=[
                {
                    "model": f"model-{m}",
                    "task": "sums",
                    "template": f"t{t}",
                    "n": n,
                    "score": round(low + spread * float(random.random()) + 0.02 * (1 - m), 4),
                }
                for m in (0, 1)
                for t in range(5)
            ],
        )
        for m in (0, 1):
            write(log_of(good(random, n), "inazuma", model=f"model-{m}", name=f"model-{m}"), folder, "inazuma")
    else:  # one with examples, the other without
        for m, shots in ((0, int(random.integers(1, 26))), (1, 0)):
            form = ("lm-eval", "lighteval")[i % 2]
            made = log_of(good(random, n), form, model=MODELS[m], fewshot=shots, name=f"model-{m}")
            write(made, folder / f"{m}", form)


@plants("V10")
def no_interval(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random, 15, 300)
    if i % 2:
        samples = good(random, n)
        write(
            log_of(samples, form, model=pick(random, MODELS), score=reported(samples, form, stderr=False)), folder, form
        )
        return
    # A difference is claimed that so few items cannot show: two models that are equal or nearly so.
    gap = float(random.uniform(0.0, 0.03))
    values = _two_models(random, folder, form, n, gap)
    declare(folder, comparisons=[_claim(values, form, test="paired")], **_intervals(form))


def _two_models(random: Random, folder: Path, form: str, n: int, gap: float) -> list[list[Sample]]:
    items, hard, base = sums(random, n), difficulties(random, n), float(random.uniform(0.5, 0.8))
    both = []
    for number in (0, 1):
        samples = respond(random, items, ability_for(base + gap * (1 - number)), hard=hard, style="The answer is {0}.")
        both.append(samples)
        made = log_of(samples, form, model=MODELS[number], name=f"model-{number}", temperature=0.0)
        write(made, folder / f"{number}" if form in ("lm-eval", "lighteval") else folder, form)
    return both


def _claim(both: list[list[Sample]], form: str, **rest: Any) -> dict[str, Any]:
    means = [float(np.mean([s.score for s in samples])) for samples in both]
    return {
        "a": MODELS[0],
        "b": MODELS[1],
        "task": "sums",
        "difference": round(means[0] - means[1], 6),
        "claim": "better" if means[0] >= means[1] else "worse",
        **rest,
    }


def _intervals(form: str, tasks: tuple[str, ...] = ("sums",)) -> dict[str, Any]:
    """HELM's own files hold none; an honest report gives it beside them."""
    return {"intervals": {task: [0.0, 1.0] for task in tasks}} if form == "helm" else {}


@plants("V11")
def clusters(random: Random, folder: Path, i: int) -> None:
    form = ("inazuma", "inspect", "lm-eval", "inspect-json")[i % 4]
    groups, each = int(random.integers(8, 60)), int(random.integers(3, 25))
    correlation = float(random.uniform(0.02, 0.7))
    items = sums(random, groups * each)
    shared = random.normal(0, 1, groups)
    hard = np.array(
        [
            1.5 * (math.sqrt(correlation) * shared[at // each] + math.sqrt(1 - correlation) * random.normal())
            for at in range(len(items))
        ]
    )
    samples = [
        replace(sample, cluster=f"passage {at // each} of the book")
        for at, sample in enumerate(respond(random, items, ability_for(0.65), hard=hard))
    ]
    write(log_of(samples, form, model=pick(random, MODELS)), folder, form)


@plants("V12")
def unpaired(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random, 60, 600)
    both = _two_models(random, folder, form, n, float(random.uniform(0.0, 0.1)))
    x, y = (np.array([s.score for s in samples]) for samples in both)
    z = abs(x.mean() - y.mean()) / math.sqrt(x.var(ddof=1) / n + y.var(ddof=1) / n)
    p = math.erfc(z / math.sqrt(2))
    if i % 3 == 0:
        declare(folder, comparisons=[_claim(both, form, test="unpaired")], **_intervals(form))
    elif i % 3 == 1:  # only its p value gives the test away
        declare(folder, comparisons=[_claim(both, form, p_value=float(f"{p:.3g}"))], **_intervals(form))
    else:  # other items on the two sides
        keep = both[1][int(random.integers(1, max(2, n // 3))) :]
        extra = log_of(keep, "inazuma", model="other/model", name="fewer", temperature=0.0)
        write(extra, folder, "inazuma")
        claim = _claim(both, form) | {"b": "other/model", "claim": "better", "test": "paired"}
        declare(folder, comparisons=[claim], **_intervals(form))


@plants("V13")
def multiplicity(random: Random, folder: Path, i: int) -> None:
    many, n = int(random.integers(5, 40)), size(random, 60, 300)
    write(log_of(good(random, n), "inazuma", model=MODELS[0], name="ours"), folder, "inazuma")
    # Differences of nothing, of which whoever looks at p < 0.05 claims some.
    p = random.uniform(0, 1, many)
    if i % 2:
        p[: int(random.integers(1, 3))] = random.uniform(0.001, 0.04)
    if not (p < 0.05).any():
        p[0] = float(random.uniform(0.01, 0.05))
    declare(
        folder,
        comparisons=[
            {
                "a": "ours",
                "b": "theirs",
                "task": f"task-{at}",
                "difference": 0.02,
                "p_value": float(f"{value:.4g}"),
                "claim": "better" if value < 0.05 else "none",
                "correction": "none",
            }
            for at, value in enumerate(p)
        ],
    )
