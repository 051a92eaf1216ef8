"""Logs without a flaw, of many kinds, some of them unusual but right: what the audit says of them is a false alarm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit_logs import FORMATS, write
from benchmarks.audit_planted import declare, size, some_of, write_texts
from benchmarks.audit_simulated import (
    METRIC,
    MODELS,
    Random,
    ability_for,
    choices,
    difficulties,
    labels,
    log_of,
    pick,
    reported,
    respond,
    sums,
)
from inazuma.evaluate.audit.log import Sample, Score
from inazuma.runs import Run

Maker = Callable[[Random, Path, int], None]
MAKERS: dict[str, Maker] = {}


def clean(function: Maker) -> Maker:
    MAKERS[function.__name__] = function
    return function


def honest(
    random: Random, folder: Path, samples: list[Sample], form: str, *, facts: dict[str, Any] | None = None, **rest: Any
) -> None:
    """The log with its interval, which stands beside it where the format has none."""
    task = rest.get("task", "sums")
    write(log_of(samples, form, model=rest.pop("model", pick(random, MODELS)), **rest), folder, form)
    facts = dict(facts or {})
    if form == "helm":
        mean = float(np.mean([s.score for s in samples]))
        facts["intervals"] = {task: [max(0.0, mean - 0.1), min(1.0, mean + 0.1)]}
    if facts:
        declare(folder, **facts)


def plain(random: Random, n: int, low: float = 0.3, high: float = 0.9, **rest: Any) -> list[Sample]:
    return respond(random, sums(random, n), ability_for(float(random.uniform(low, high))), **rest)


@clean
def ordinary(random: Random, folder: Path, i: int) -> None:
    honest(random, folder, plain(random, size(random)), FORMATS[i % len(FORMATS)])


@clean
def few_items(random: Random, folder: Path, i: int) -> None:
    """30 items, as AIME has, with their interval."""
    honest(random, folder, plain(random, int(random.integers(15, 40)), 0.4, 0.8), FORMATS[i % len(FORMATS)])


@clean
def multiple_choice(random: Random, folder: Path, i: int) -> None:
    form = FORMATS[i % len(FORMATS)]
    width = int(random.integers(3, 6))
    samples = respond(
        random, choices(random, size(random, 120, 600), width), ability_for(float(random.uniform(0.55, 0.9)))
    )
    samples = [replace(sample, chance=1 / width) for sample in samples]
    honest(random, folder, samples, form, generates=form != "lm-eval")


@clean
def yes_or_no(random: Random, folder: Path, i: int) -> None:
    samples = respond(random, labels(random, size(random, 150, 600)), ability_for(float(random.uniform(0.7, 0.93))))
    honest(random, folder, samples, FORMATS[i % len(FORMATS)], generates=FORMATS[i % len(FORMATS)] != "lm-eval")


@clean
def long_answers(random: Random, folder: Path, i: int) -> None:
    """Answers that come near their limit and end by themselves."""
    form = ("inazuma", "inspect", "helm", "lighteval")[i % 4]
    samples = [
        replace(s, generated_tokens=int(random.integers(200, 255)), max_tokens=256) for s in plain(random, size(random))
    ]
    honest(random, folder, samples, form)


@clean
def truncation_reported(random: Random, folder: Path, i: int) -> None:
    """Some answers were cut off; they are typed so, and the score stands with its bounds."""
    samples = plain(random, size(random, 100, 500))
    for at in some_of(random, len(samples), float(random.uniform(0.02, 0.2))):
        samples[at] = replace(
            samples[at],
            outcome="truncated",
            stop="length",
            score=0.0,
            generated_tokens=512,
            answer="And so we add",
            extracted=None,
        )
    n, right = len(samples), sum(s.score or 0 for s in samples)
    cut = sum(s.outcome == "truncated" for s in samples)
    score = replace(reported(samples, "inazuma"), bounds=(right / n, (right + cut) / n))
    honest(random, folder, samples, "inazuma", score=score)


@clean
def typed_failures(random: Random, folder: Path, i: int) -> None:
    """Errors, refusals and invalid items have their own outcomes and are not in the score."""
    samples = plain(random, size(random, 100, 500))
    for at in some_of(random, len(samples), 0.05):
        kind = pick(random, ["infrastructure_error", "refused", "invalid_item", "no_answer"])
        score = 0.0 if kind == "no_answer" else None
        error = "connection reset" if kind == "infrastructure_error" else None
        dropped = 40 if kind == "invalid_item" else 0
        samples[at] = replace(
            samples[at],
            outcome=kind,
            score=score,
            error=error,
            prompt_tokens_dropped=dropped,
            answer="" if error else "I cannot say.",
            extracted=None,
        )
    honest(random, folder, samples, "inazuma")


@clean
def failed_samples(random: Random, folder: Path, i: int) -> None:
    """Inspect leaves out of the score what failed."""
    samples = plain(random, size(random, 100, 300))
    for at in some_of(random, len(samples), 0.03):
        samples[at] = replace(samples[at], score=None, error="docker: connection refused", answer=None)
    honest(random, folder, samples, ("inspect", "inspect-json")[i % 2])


@clean
def answers_about_errors(random: Random, folder: Path, i: int) -> None:
    """Wrong answers that speak of errors, as answers on programming do."""
    samples = plain(random, size(random))
    for at, sample in enumerate(samples):
        if sample.score == 0 and random.random() < 0.3:
            said = pick(
                random, ["You get a TimeoutError here.", "The server answers 404 then.", "An exception is raised."]
            )
            samples[at] = replace(sample, answer=f"{said} {sample.answer}")
    honest(random, folder, samples, FORMATS[i % len(FORMATS)])


@clean
def clustered(random: Random, folder: Path, i: int) -> None:
    """Passages with several questions, and the clustered standard error."""
    form = ("inazuma", "inspect", "lm-eval", "inspect-json")[i % 4]
    groups, each = int(random.integers(20, 60)), int(random.integers(3, 15))
    shared = random.normal(0, 1.2, groups)
    hard = np.array([shared[at // each] + random.normal() for at in range(groups * each)])
    samples = respond(random, sums(random, groups * each), ability_for(0.65), hard=hard)
    samples = [replace(s, cluster=f"passage {at // each}") for at, s in enumerate(samples)]
    x = np.array([s.score for s in samples]).reshape(groups, each)
    # Cochran, Sampling Techniques, section 9.2: clusters of one size are a sample of their means.
    error = float(x.mean(1).std(ddof=1) / math.sqrt(groups))
    honest(random, folder, samples, form, score=Score(METRIC[form], float(x.mean()), error, None, x.size))


@clean
def repeats(random: Random, folder: Path, i: int) -> None:
    """Four epochs at temperature 0.7; the error is that of the items' means, as Inspect gives it."""
    form = ("inspect", "inazuma")[i % 2]
    n = size(random, 40, 150)
    items, hard = sums(random, n), difficulties(random, n)
    epochs = [respond(random, items, 0.9, hard=hard) for _ in range(4)]
    samples = [replace(s, repeat=e) for e, some in enumerate(epochs) for s in some]
    means = np.mean([[s.score for s in some] for some in epochs], axis=0)
    score = Score(METRIC[form], float(means.mean()), float(means.std(ddof=1) / math.sqrt(n)), None, n)
    honest(random, folder, samples, form, score=score, temperature=0.7)


@clean
def examples_from_training(random: Random, folder: Path, i: int) -> None:
    """Examples in the prompt, none of them a test item."""
    items = sums(random, size(random, 60, 300))
    asked = {item.question for item in items}
    shots = [item for item in sums(random, 30) if item.question not in asked][: int(random.integers(1, 9))]
    text = "\n\n".join(f"Question: {item.question}\nAnswer: {item.target}" for item in shots)
    samples = respond(random, items, 1.0, instruction=f"Answer like this.\n\n{text}")
    honest(random, folder, samples, FORMATS[i % len(FORMATS)], fewshot=len(shots))


@clean
def splits_apart(random: Random, folder: Path, i: int) -> None:
    """Training and test texts from the same templates, about other things."""
    items = sums(random, size(random, 60, 200))
    vocabulary = [
        f"{a}{b}" for a in ("bra", "ke", "lo", "mi", "nu", "pa", "ri", "so") for b in ("den", "lis", "mor", "tan")
    ]
    texts = [
        {"text": " ".join(pick(random, vocabulary) for _ in range(25)), "group": f"g{at % 30}"} for at in range(300)
    ]
    write_texts(folder / "train.jsonl", texts[:200])
    write_texts(folder / "test.jsonl", [{**text, "group": f"h{at % 9}"} for at, text in enumerate(texts[200:])])
    write_texts(folder / "corpus.jsonl", texts)
    facts = {
        "texts": {
            "train_split": ["train.jsonl"],
            "test_split": ["test.jsonl"],
            "pretraining": ["corpus.jsonl"],
            "fitted_on": ["train"],
        }
    }
    honest(random, folder, respond(random, items, 1.0), FORMATS[i % len(FORMATS)], facts=facts)


@clean
def compared(random: Random, folder: Path, i: int) -> None:
    """Two models on the same items, a difference that is there, tested in pairs."""
    from scipy import stats

    n, form = size(random, 400, 900), ("inazuma", "inspect", "lm-eval", "lighteval")[i % 4]
    items, hard = sums(random, n), difficulties(random, n)
    both = [respond(random, items, ability_for(a), hard=hard, style="The answer is {0}.") for a in (0.82, 0.6)]
    for number, samples in enumerate(both):
        made = log_of(samples, form, model=MODELS[number], name=f"model-{number}", temperature=0.0)
        write(made, folder / f"{number}" if form in ("lm-eval", "lighteval") else folder, form)
    x, y = (np.array([s.score for s in samples]) for samples in both)
    p = float(stats.binomtest(int((x > y).sum()), int((x != y).sum())).pvalue)
    facts: dict[str, Any] = {
        "a": MODELS[0],
        "b": MODELS[1],
        "task": "sums",
        "difference": float((x - y).mean()),
        "p_value": p,
    }
    if i % 2:
        facts["test"] = "paired"
    arms = [
        {"name": name, "role": role, "trials": 20, "searched": {"lr": [1e-4, 1e-3, 1e-2]}, "chosen": {"lr": 1e-3}}
        for name, role in (("ours", "ours"), ("theirs", "baseline"))
    ]
    declare(folder, comparisons=[facts], arms=arms)


@clean
def no_difference_claimed(random: Random, folder: Path, i: int) -> None:
    """Many comparisons, corrected or claiming nothing."""
    many = int(random.integers(4, 20))
    p = random.uniform(0, 1, many)
    claims = [
        {
            "a": "ours",
            "b": "theirs",
            "task": f"t{at}",
            "difference": 0.01,
            "p_value": float(f"{v:.4g}"),
            "claim": "none",
            "test": "paired",
            "correction": "holm",
        }
        for at, v in enumerate(p)
    ]
    honest(random, folder, plain(random, size(random)), "inazuma", facts={"comparisons": claims})


@clean
def all_runs_shown(random: Random, folder: Path, i: int) -> None:
    """Several seeds, every one there, their mean reported."""
    runs, items = int(random.integers(2, 7)), sums(random, 100)
    values = []
    for seed in range(runs):
        samples = respond(random, items, 0.8)
        values.append(float(np.mean([s.score for s in samples])))
        write(
            log_of(samples, "inazuma", model=MODELS[0], name=f"seed-{seed}", seed=seed, temperature=0.7),
            folder,
            "inazuma",
        )
    shown = {
        "result": "sums",
        "launched": runs,
        "values": values,
        "reported": float(np.mean(values)),
        "statistic": "mean",
    }
    declare(folder, selections=[shown])


@clean
def deterministic(random: Random, folder: Path, i: int) -> None:
    """The same model at temperature 0 with two batch sizes: nothing changes; or some does, and it is reported."""
    samples, form = plain(random, size(random)), pick(random, ["inazuma", "lm-eval", "lighteval", "inspect"])
    again = list(samples)
    if i % 2:
        again[3] = replace(
            samples[3],
            score=1 - (samples[3].score or 0),
            answer="42",
            outcome="wrong" if samples[3].score else "correct",
            extracted="42",
        )
        declare(folder, repeatability=[{"what": "batch size", "n": len(samples), "flips": 1, "reported": True}])
    for number, some in enumerate((samples, again)):
        made = log_of(some, form, model=MODELS[0], name=f"run-{number}", temperature=0.0, batch_size=(1, 16)[number])
        write(made, folder / f"{number}", form)


@clean
def puzzles(random: Random, folder: Path, i: int) -> None:
    """Crossings and towers that can be solved and fit; the impossible ones are typed invalid."""
    form, items = ("inazuma", "inspect", "helm")[i % 3], []
    for at in range(int(random.integers(24, 60))):
        if at % 2:
            n, k = int(random.integers(2, 6)), int(random.integers(3, 5))
            asked = f"{n} actors and their {n} agents cross a river. The boat holds at most {k} people. List the moves."
            invalid = form == "inazuma" and at % 5 == 0
            if invalid:
                asked = "7 actors and their 7 agents cross a river. The boat holds at most 3 people. List the moves."
        else:
            asked = f"Solve the Tower of Hanoi with {int(random.integers(3, 11))} disks. List all moves."
            invalid = False
        right = float(random.random() < 0.6)
        outcome = "invalid_item" if invalid else "correct" if right else "wrong"
        items.append(
            Sample(
                f"p{at}",
                score=None if invalid else right,
                outcome=outcome,
                question=asked,
                prompt=f"{asked} ({at})",
                answer="[[1, 0, 2]]",
                extracted="plan" if right else "no plan",
                target="plan",
                stop="end",
                prompt_tokens=60,
                prompt_tokens_dropped=0,
                generated_tokens=9000,
                max_tokens=64000,
                witness=True,
            )
        )
    honest(random, folder, items, form, task="puzzles")


@clean
def long_context(random: Random, folder: Path, i: int) -> None:
    """Six long-context tasks of five families, none saturated."""
    form = pick(random, ["inazuma", "lm-eval", "lighteval"])
    names = ("niah_multikey_1", "nolima_16k", "ruler_vt", "ruler_cwe", "ruler_fwe", "longbench_qasper")
    tasks = [
        log_of(plain(random, size(random, 60, 200), 0.5, 0.9), form, model=MODELS[0], task=name).tasks[0]
        for name in names
    ]
    write(replace(log_of(plain(random, 40), form, model=MODELS[0]), tasks=tuple(tasks)), folder, form)


@clean
def measured(random: Random, folder: Path, i: int) -> None:
    """Speed, energy, losses, a judge and templates, all as they should be."""
    fast = {
        "name": "decode",
        "measure": "seconds",
        "run": "r1",
        "quality_run": "r1",
        "baseline": "PyTorch SDPA",
        "speedup": 1.4,
        "percentiles": {"p50": 0.01, "p95": 0.02, "p99": 0.03},
        "sparse": True,
        "crossover_length": 16384,
    }
    used = {
        "name": "training",
        "joules": 9000.0,
        "source": "counter",
        "seconds": float(random.uniform(6, 600)),
        "idle_watts": 30.0,
        "idle_subtracted": True,
        "synchronized": True,
        "warmed_up": True,
    }
    guess = {"name": "laptop", "joules": 900.0, "source": "estimate", "marked_estimated": True}
    losses = [
        {
            "model": f"m{m}",
            "text": "wikitext",
            "unit": "bits per byte",
            "value": 0.9 + m / 10,
            "tokenizer": f"tok{m}",
            "bytes": 1_290_000,
        }
        for m in range(3)
    ]
    judge = {
        "model": "openai/gpt-4o",
        "judged": ["acme/larch-1b"],
        "pairwise": True,
        "both_orders": True,
        "order_agreement": 0.92,
        "human_labels": 300,
        "repeats": 3,
    }
    samples = plain(random, size(random), 0.5, 0.8)
    mean = float(np.mean([s.score for s in samples]))
    formats = [
        {
            "model": "acme/larch-1b",
            "task": "sums",
            "template": f"t{t}",
            "n": len(samples),
            "score": round(float(np.clip(mean + random.normal(0, 0.01), 0, 1)), 4),
        }
        for t in range(5)
    ]
    facts = {
        "speed": [fast],
        "energy": [used, guess],
        "losses": losses,
        "judges": [judge],
        "formats": formats,
        "training": [{"with_evaluation": "ab" * 32, "without_evaluation": "ab" * 32}],
    }
    honest(
        random, folder, samples, pick(random, ["inazuma", "inspect", "lighteval"]), facts=facts, model="acme/larch-1b"
    )


@clean
def training_twins(random: Random, folder: Path, i: int) -> None:
    """Training with and without evaluation, bit-equal; and one with another seed, which may differ."""
    curve = [4 * math.exp(-step / 50) + 1 + 0.05 * float(random.normal()) for step in range(100)]
    for number, (every, seed) in enumerate(((10, 3), (0, 3), (10, 4))):
        run = Run.create(
            folder / f"r{number}", command=["train"], config={"validate_every": every, "seed": seed, "lr": 0.1}
        )
        for step, loss in enumerate(curve, start=1):
            run.metric(kind="train", step=step, loss=loss + 0.01 * (seed - 3))
        run.finish("finished")


@clean
def digits_dropped(random: Random, folder: Path, i: int) -> None:
    """Scores and errors given to two or three digits, as tables do."""
    samples, form = plain(random, size(random)), ("lighteval", "lm-eval", "inspect", "inazuma")[i % 4]
    score = reported(samples, form)
    score = replace(score, value=round(score.value, 3), stderr=round(score.stderr or 0, 3), interval=None)
    honest(random, folder, samples, form, score=score)


@clean
def other_names(random: Random, folder: Path, i: int) -> None:
    """Answers in other scripts and forms, keys with units and signs."""
    samples = []
    for at, sample in enumerate(plain(random, size(random))):
        key = f"{sample.target} Stück" if at % 2 else f"約{sample.target}個"
        said = key if sample.score else f"{int(sample.target or 0) + 1} Stück"
        samples.append(replace(sample, target=key, answer=f"Antwort: {said}", extracted=said))
    honest(random, folder, samples, FORMATS[i % len(FORMATS)])


@clean
def key_in_passing(random: Random, folder: Path, i: int) -> None:
    """Wrong answers that name the key on their way."""
    samples = []
    for sample in plain(random, size(random), style="The answer is {0}."):
        if sample.score == 0:
            sample = replace(
                sample, answer=f"It might be {sample.target}, but I lost one. The answer is {sample.extracted}."
            )
        samples.append(sample)
    honest(random, folder, samples, FORMATS[i % len(FORMATS)])


@clean
def question_twice(random: Random, folder: Path, i: int) -> None:
    """Prompts that say the question again."""
    samples = plain(random, size(random))
    samples = [replace(s, prompt=f"{s.question}\nRead it again: {s.question}\nYour answer:") for s in samples]
    honest(random, folder, samples, FORMATS[i % len(FORMATS)])


@clean
def weak_but_above_chance(random: Random, folder: Path, i: int) -> None:
    """A small model, far from good, on enough items to be told from chance."""
    form, items = FORMATS[i % len(FORMATS)], choices(random, int(random.integers(600, 1200)))
    samples = respond(random, items, ability_for(0.40))
    honest(random, folder, samples, form, generates=form != "lm-eval")


@clean
def nearly_solved(random: Random, folder: Path, i: int) -> None:
    """A strong model on a few hundred items, not at the ceiling."""
    samples = plain(random, size(random, 60, 300), 0.9, 0.96)
    honest(random, folder, samples, FORMATS[i % len(FORMATS)])


@clean
def models_side_by_side(random: Random, folder: Path, i: int) -> None:
    """Three models on the same items, nothing claimed; the hard items are hard for all."""
    items, form = sums(random, size(random)), ("inazuma", "inspect", "lighteval", "lm-eval")[i % 4]
    hard = difficulties(random, len(items))
    for number, model in enumerate(MODELS[:3]):
        samples = respond(random, items, ability_for(float(random.uniform(0.5, 0.9))), hard=hard)
        made = log_of(samples, form, model=model, name=f"model-{number}", temperature=0.0)
        write(made, folder / f"{number}" if form in ("lm-eval", "lighteval") else folder, form)
