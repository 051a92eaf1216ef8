"""The planted flaws of V14 to V25: those of claims, training and measurements, and of what is beside the answers."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.audit_logs import FORMATS, write
from benchmarks.audit_planted import declare, good, plants, share, size, some_of, wrong
from benchmarks.audit_simulated import (
    METRIC,
    MODELS,
    Random,
    ability_for,
    choices,
    labels,
    log_of,
    pick,
    respond,
    sums,
)
from inazuma.evaluate.audit.log import Sample, Score
from inazuma.runs import Run


def any_log(random: Random, folder: Path, **rest: Any) -> None:
    """A log without a flaw, for what is declared beside it."""
    form = pick(random, ["inazuma", "inspect", "lighteval"])
    write(log_of(good(random, size(random, 60, 200)), form, model=MODELS[0], **rest), folder, form)


@plants("V14")
def best_of_runs(random: Random, folder: Path, i: int) -> None:
    runs = int(random.integers(2, 20))
    values = [round(float(v), 4) for v in random.normal(0.6, 0.015, runs)]
    kind = i % 4
    if kind == 0:
        any_log(random, folder)
        declare(folder, selections=[{"result": "sums", "launched": runs, "reported": max(values), "statistic": "best"}])
    elif kind == 1:  # the best value, called nothing
        any_log(random, folder)
        shown = {"result": "sums", "launched": runs, "values": values, "reported": max(values)}
        declare(folder, selections=[shown])
    elif kind == 2:  # some runs are not shown
        any_log(random, folder)
        kept = sorted(values)[-int(random.integers(1, runs)) :]
        declare(
            folder,
            selections=[
                {
                    "result": "sums",
                    "launched": runs,
                    "values": kept,
                    "statistic": "mean",
                    "reported": sum(kept) / len(kept),
                }
            ],
        )
    else:  # runs with other seeds were deleted, or lie beside the one that is shown
        items = sums(random, 80)
        for seed in range(runs):
            made = log_of(respond(random, items, 0.8), "inazuma", model=MODELS[0], name=f"seed-{seed}", seed=seed)
            write(made, folder / "runs", "inazuma")
        gone = int(random.integers(1, runs))
        for seed in range(gone):
            shutil.rmtree(folder / "runs" / f"seed-{seed}")


@plants("V15")
def weak_baseline(random: Random, folder: Path, i: int) -> None:
    any_log(random, folder)
    trials, grid = int(random.integers(4, 60)), [1e-4, 3e-4, 1e-3, 3e-3]
    ours = {
        "name": "ours",
        "role": "ours",
        "trials": trials,
        "searched": {"lr": grid},
        "chosen": {"lr": 1e-3},
        "steps": 1000,
        "planned_steps": 1000,
        "tokens": 10_000_000,
    }
    baseline = ours | {"name": "adamw", "role": "baseline"}
    kind = i % 4
    if kind == 0:
        baseline["trials"] = int(random.integers(1, trials))
    elif kind == 1:  # a narrower search, whose best is its edge
        baseline |= {"searched": {"lr": grid[:3]}, "chosen": {"lr": pick(random, [1e-4, 1e-3])}}
    elif kind == 2:
        baseline["steps"] = int(1000 * random.uniform(0.2, 0.99))
    else:
        baseline["tokens"] = int(10_000_000 * random.uniform(0.3, 0.98))
    declare(folder, arms=[ours, baseline])


@plants("V16")
def judge_bias(random: Random, folder: Path, i: int) -> None:
    n = size(random, 30, 200)
    if i % 3 == 0:  # Inspect's model-graded scorer, which asks the model under test by default
        model = pick(random, ["openai/gpt-4o-mini", "anthropic/claude-3-haiku", "together/qwen2.5-7b"])
        judge = (
            model
            if i % 2
            else {"o": "openai/gpt-4o", "a": "anthropic/claude-3-opus", "t": "together/qwen2-72b"}[model[0]]
        )
        write(log_of(good(random, n), "inspect", model=model, judge=judge), folder, "inspect")
        return
    any_log(random, folder)
    judge = {
        "model": "openai/gpt-4o",
        "judged": ["acme/larch-1b"],
        "pairwise": True,
        "both_orders": True,
        "order_agreement": 0.93,
        "human_labels": 200,
        "repeats": 3,
    }
    judge |= (
        {"both_orders": False},
        {"order_agreement": round(float(random.uniform(0.5, 0.85)), 2)},
        {"human_labels": int(random.integers(0, 95))},
        {"repeats": 1},
        {"judged": ["openai/gpt-3.5-turbo"]},
        {"judged": ["mirror/gpt4all-13b"], "family": "gpt"},
    )[int(random.integers(6))]
    declare(folder, judges=[judge])


@plants("V17")
def perplexity(random: Random, folder: Path, i: int) -> None:
    kind = i % 4
    if kind == 0:  # two logs with a loss per token each
        for number, tokenizer in enumerate(("gpt2", "llama")):
            samples = [Sample(str(at), score=float(random.uniform(1.5, 4))) for at in range(60)]
            score = Score(pick(random, ["loss", "token_perplexity"]) if not number else "loss", 2.9, 0.1, None, 60)
            made = log_of(
                samples,
                "lm-eval",
                model=MODELS[number],
                task="wikitext",
                score=replace(score, metric="loss"),
                generates=False,
                tokenizer=tokenizer,
            )
            write(made, folder / f"{number}", "lm-eval")
        return
    any_log(random, folder)
    unit = pick(random, ["nats per token", "bits per token", "token perplexity"])
    losses = [
        {
            "model": f"m{m}",
            "text": "wikitext",
            "unit": unit,
            "value": round(float(random.uniform(2, 4)), 3),
            "tokenizer": pick(random, ["gpt2", "llama-32k"]) if m else "byte-260",
            "bytes": 1_290_000,
        }
        for m in range(int(random.integers(2, 5)))
    ]
    if kind == 2:  # characters beside bytes
        losses[0]["unit"], losses[1]["unit"] = "bits per byte", "bits per character"
    elif kind == 3:  # bits per byte, of other bytes: a stripped header, another normalisation
        losses = [loss | {"unit": "bits per byte"} for loss in losses]
        losses[1]["bytes"] = int(1_290_000 * random.uniform(0.9, 0.9999))
    declare(folder, losses=losses)


@plants("V18")
def needle_only(random: Random, folder: Path, i: int) -> None:
    form = pick(random, ["inazuma", "lm-eval", "lighteval"])
    names = pick(
        random,
        [
            ["niah_single_1"],
            ["needle_in_a_haystack"],
            ["passkey"],
            ["niah_single_2", "niah_multikey_1"],
            ["ruler_niah_single_1", "ruler_vt"],
            ["niah_multivalue", "ruler_cwe", "ruler_fwe"],
            ["babilong_qa1", "babilong_qa2"],
            ["longbench_hotpotqa", "longbench_musique"],
        ],
    )
    tasks = []
    for name in names:
        samples = respond(random, sums(random, size(random, 50, 300)), ability_for(float(random.uniform(0.75, 0.97))))
        tasks += log_of(samples, form, model=MODELS[0], task=name).tasks
    write(replace(log_of(good(random, 40), form, model=MODELS[0]), tasks=tuple(tasks)), folder, form)


@plants("V19")
def nondeterminism(random: Random, folder: Path, i: int) -> None:
    n, kind = size(random, 50, 500), i % 3
    flips = some_of(random, n, share(random, 0.002, 0.15))
    samples = good(random, n)
    again = [
        replace(s, score=1 - (s.score or 0), outcome="wrong" if s.score else "correct", answer=f"Well, {s.answer}")
        if at in flips
        else s
        for at, s in enumerate(samples)
    ]
    if kind == 0:  # two logs, batch 1 and batch 32
        form = pick(random, ["inazuma", "lm-eval", "lighteval", "inspect"])
        for number, (some, batch) in enumerate(((samples, 1), (again, 32))):
            made = log_of(some, form, model=MODELS[0], name=f"run-{number}", temperature=0.0, batch_size=batch, seed=1)
            write(made, folder / f"{number}", form)
    elif kind == 1:  # repeats in one log
        form = pick(random, ["inazuma", "inspect"])
        both = samples + [replace(s, repeat=1) for s in again]
        write(log_of(both, form, model=MODELS[0], temperature=0.0), folder, form)
    else:
        any_log(random, folder)
        declare(folder, repeatability=[{"what": "batch size", "n": n, "flips": len(flips)}])


@plants("V20")
def evaluation_changes_training(random: Random, folder: Path, i: int) -> None:
    if i % 3 == 0:
        any_log(random, folder)
        declare(
            folder,
            training=[
                {"with_evaluation": f"{random.integers(2**60):x}", "without_evaluation": f"{random.integers(2**60):x}"}
            ],
        )
        return
    steps, since = int(random.integers(20, 200)), 0
    since = int(random.integers(1, steps))
    curve = [4 * math.exp(-step / 60) + 1 + 0.05 * float(random.normal()) for step in range(steps)]
    amount = share(random, 1e-7, 1e-2)
    for number, every in enumerate((10, 0)):
        config = {"stages": [{"tokens": 10_000}], "validate_every": every, "seed": 3}
        run = Run.create(folder / f"run-{number}", command=["train"], config=config)
        for step, loss in enumerate(curve, start=1):
            other = loss + amount * float(random.normal()) if number and step > since else loss
            run.metric(kind="train", step=step, loss=other)
            if every and step % every == 0:
                run.metric(kind="validation", step=step, loss=loss)
        run.finish("finished")


ERRORS = (
    "Error code: 429 - rate limit exceeded",
    'Traceback (most recent call last):\n  File "agent.py", line 3',
    "openai.APITimeoutError: Request timed out.",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "",
    "502 Bad Gateway",
    "<html><head><title>503 Service Unavailable</title>",
    "sandbox exited with code 137",
    "ConnectionError: HTTPSConnectionPool(host='api', port=443)",
    '{"error": {"message": "overloaded"}}',
)


@plants("V21")
def infrastructure(random: Random, folder: Path, i: int) -> None:
    form, n = FORMATS[i % len(FORMATS)], size(random)
    samples = good(random, n)
    said = ERRORS[i % len(ERRORS)]
    field = form in ("inazuma", "helm") and i % 2 == 0
    for at in some_of(random, n, share(random, 0.003, 0.2)):
        if field:
            samples[at] = wrong(samples[at], error=said or "empty response", answer="", extracted=None)
        else:
            samples[at] = wrong(samples[at], answer=said, extracted=None)
    write(log_of(samples, form, model=pick(random, MODELS)), folder, form)


@plants("V22")
def standard_error(random: Random, folder: Path, i: int) -> None:
    form = ("inazuma", "lm-eval", "inspect", "lighteval", "inspect-json")[i % 5]
    n = size(random, 40, 1500)
    samples = good(random, n)
    x = np.array([s.score for s in samples])
    right = float(x.std(ddof=1) / math.sqrt(n))
    wrongs = (
        0.0,
        right / math.sqrt(1000),  # a bootstrap's error divided by the root of its draws
        float(x.std()),  # the standard deviation
        right**2,  # the variance of the mean
        1.96 * right,  # half of an interval
        right / math.sqrt(float(random.uniform(1.1, 4))),  # n counted several times
        right * math.sqrt(float(random.uniform(1.1, 3))),
    )
    kind = int(random.integers(len(wrongs) + 2))
    score = Score(METRIC[form], float(x.mean()), right, None, n)
    if kind < len(wrongs):
        score = replace(score, stderr=wrongs[kind])
    elif kind == len(wrongs):  # the mean is another run's
        score = replace(
            score, value=float(np.clip(x.mean() + pick(random, [-1, 1]) * random.uniform(0.002, 0.1), 0, 1))
        )
    else:  # an interval that is too narrow (seen where intervals are kept)
        half = right * float(random.uniform(0.1, 1.2))
        score = replace(score, stderr=right if form != "inazuma" else None, interval=(x.mean() - half, x.mean() + half))
        form = "inazuma"
    write(log_of(samples, form, model=pick(random, MODELS), score=score), folder, form)


@plants("V23")
def speed(random: Random, folder: Path, i: int) -> None:
    any_log(random, folder)
    fast = {
        "name": "decode 32K",
        "measure": "seconds",
        "run": "run-1",
        "quality_run": "run-1",
        "baseline": "PyTorch SDPA",
        "speedup": 2.1,
        "percentiles": {"p50": 0.01, "p95": 0.012, "p99": 0.02},
        "sparse": True,
        "crossover_length": 8192,
    }
    flaws: list[dict[str, Any]] = [
        {"measure": "flops", "percentiles": {}},
        {"quality_run": None},
        {"quality_run": "run-2"},
        {"baseline": None},
        {"percentiles": {"p50": 0.01}},
        {"crossover_length": None},
        {"percentiles": {}},
        {"run": None},
        {"baseline": "our own loop in Python"},
        {"speedup": None, "baseline": None, "sparse": True},
    ]
    made = {key: value for key, value in (fast | flaws[i % len(flaws)]).items() if value is not None}
    declare(folder, speed=[made])


@plants("V24")
def chance_and_ceiling(random: Random, folder: Path, i: int) -> None:
    form, n, kind = FORMATS[i % len(FORMATS)], size(random, 40, 800), i % 4
    if kind == 0:  # a model that guesses among four
        items = choices(random, n)
        samples = [respond(random, [item], ability_for(0.25), hard=np.zeros(1))[0] for item in items]
    elif kind == 1:  # a model that always says the more frequent label
        yes = float(random.uniform(0.55, 0.9))
        samples = []
        for sample in respond(random, labels(random, n, yes), 0.0):
            right = sample.target == "yes"
            samples.append(
                replace(
                    sample, answer="yes", extracted="yes", score=float(right), outcome="correct" if right else "wrong"
                )
            )
    elif kind == 2:  # solved by everyone
        samples = respond(random, sums(random, n), 12.0)
    else:
        samples = respond(random, sums(random, n), -12.0)
    generates = form != "lm-eval" or kind > 1
    write(log_of(samples, form, model=pick(random, MODELS), generates=generates), folder, form)


@plants("V25")
def energy(random: Random, folder: Path, i: int) -> None:
    any_log(random, folder)
    used: dict[str, Any] = {
        "name": "training",
        "joules": 4000.0,
        "source": "counter",
        "seconds": 30.0,
        "idle_watts": 40.0,
        "idle_subtracted": True,
        "synchronized": True,
        "warmed_up": True,
    }
    flaws: list[dict[str, Any]] = [
        {"seconds": round(float(random.uniform(0.05, 7)), 2)},
        {"idle_subtracted": False},
        {"synchronized": False},
        {"source": "rated power"},
        {"source": "estimate", "marked_estimated": True, "ranked": True},
        {"warmed_up": False},
        {"source": "polled power"},
        {"source": "estimate"},
        {"joules": 600.0, "idle_subtracted": False},
        {"seconds": round(float(random.uniform(0.5, 4.9)), 2), "synchronized": False},
    ]
    declare(folder, energy=[used | flaws[i % len(flaws)]])
