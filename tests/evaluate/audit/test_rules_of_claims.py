"""Rules V09, V10, V12 to V20, V23 and V25, which look at claims, runs and measurements: planted flaw and clean twin."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inazuma import config
from inazuma.evaluate.audit.declared import Declared
from inazuma.evaluate.audit.log import Study, TrainingRun
from inazuma.evaluate.audit.readers.training_run import started
from inazuma.runs import Run
from tests.evaluate.audit.studies import log, one, sample, samples, score, study, task, verdict

PAIRS: dict[str, tuple[Callable[[], Study], Callable[[], Study]]] = {}


def declared(made: Study | None = None, **facts: Any) -> Study:
    """A study with this `study.yaml`."""
    made = made or one(samples(30, 40))
    return replace(made, declared=config.from_dict(Declared, facts, where="study.yaml"))


def pairs(rule: str, made: Callable[[Any], Study], flaws: dict[str, Any], twin: Any) -> None:
    for name, flaw in flaws.items():
        PAIRS[f"{rule} {name}"] = (lambda f=flaw: made(f), lambda: made(twin))


# ------------------------------------------------------------------------------------------- V09: the prompt's format


def templates(scores: list[float]) -> Study:
    rows = [{"model": "m", "task": "t", "template": f"t{i}", "score": s, "n": 200, "headline": i == 0}
            for i, s in enumerate(scores)]  # fmt: skip
    return declared(one([sample(at, template="a" if at % 2 else "b") for at in range(40)]), formats=rows)


pairs("V09", templates, {"best reported": [0.8, 0.55, 0.6]}, [0.7, 0.68, 0.72])


def ranked(scores: dict[str, list[float]]) -> Study:
    rows = [{"model": m, "task": "product", "template": f"t{i}", "score": s, "n": 200}
            for m, row in scores.items() for i, s in enumerate(row)]  # fmt: skip
    both = study(*(log(task(samples(6, 9)), name=m, model=m) for m in scores))
    return declared(both, formats=rows, comparisons=[{"a": "m", "b": "o", "task": "product", "difference": 0.1}])


pairs("V09", ranked, {"order turns": {"m": [0.5, 0.7], "o": [0.6, 0.55]}}, {"m": [0.7, 0.75], "o": [0.6, 0.55]})


def shots(numbers: tuple[int, int]) -> Study:
    split = [sample(at, template="a" if at % 2 else "b") for at in range(40)]
    return study(*(log(task(split, fewshot=n), name=m, model=m) for m, n in zip("ab", numbers, strict=True)))


pairs("V09", shots, {"examples": (5, 0)}, (5, 5))

# --------------------------------------------------------------------------------- V10, V12, V13: claimed differences

some = samples(30, 40)
PAIRS["V10 no interval"] = (lambda: one(some, scores=(score(some, stderr=None),)), lambda: one(some))
PAIRS["V10 stated beside"] = (
    lambda: one(some, scores=(score(some, stderr=None),)),
    lambda: declared(one(some, scores=(score(some, stderr=None),)), intervals={"product": [0.6, 0.86]}),
)


def two(won: int, lost: int, n: int = 400, **claim: Any) -> Study:
    """Of n items `a` alone has `won`, `b` alone has `lost`; both have half of the others."""
    a = [sample(at, at < won or (at >= won + lost and at % 2 == 0)) for at in range(n)]
    b = [sample(at, won <= at < won + lost or (at >= won + lost and at % 2 == 0)) for at in range(n)]
    logs = [log(task(rows), name=name, model=name) for name, rows in (("a", a), ("b", b))]
    facts = {"a": "a", "b": "b", "task": "product", "difference": (won - lost) / n, "claim": "better", **claim}
    return declared(study(*logs), comparisons=[facts])


# 40 of 400 items discordant: the standard deviation is 0.316, 80 % power takes 2.8 × 0.316 / 20 = 4.4 points.
PAIRS["V10 below what n shows"] = (lambda: two(24, 16), lambda: two(30, 10))
PAIRS["V10 below, and yet found"] = (lambda: two(25, 15), lambda: two(28, 12))
PAIRS["V10 few items are enough for no claim"] = (lambda: two(6, 4, 50), lambda: two(6, 4, 50, claim="none"))
PAIRS["V12 said"] = (lambda: two(30, 10, test="unpaired"), lambda: two(30, 10, test="paired"))
# Exact McNemar of 30 to 10: 2 · P(X ≤ 10), X binomial(40, 1/2).
MCNEMAR = 2 * sum(math.comb(40, k) for k in range(11)) / 2**40
PAIRS["V12 by its p"] = (lambda: two(30, 10, p_value=_z(30, 10, 400)), lambda: two(30, 10, p_value=round(MCNEMAR, 5)))


def _z(won: int, lost: int, n: int) -> float:
    both = (n - won - lost) // 2
    p, q = (won + both) / n, (lost + both) / n
    z = (p - q) / math.sqrt((p * (1 - p) + q * (1 - q)) / (n - 1))
    return float(f"{math.erfc(z / math.sqrt(2)):.3g}")


def other_items(shift: int) -> Study:
    made = two(30, 10, test="paired")
    moved = [replace(s, item=f"{int(s.item) + shift}") for s in made.logs[1].tasks[0].samples]
    return replace(made, logs=(made.logs[0], log(task(moved), name="b", model="b")))


pairs("V12", other_items, {"other items": 7}, 0)


def family(p: list[float], correction: str = "none") -> Study:
    rows = [{"a": "a", "b": "b", "task": f"t{i}", "difference": 0.1, "p_value": value, "correction": correction,
             "claim": "better" if value < 0.05 else "none"} for i, value in enumerate(p)]  # fmt: skip
    return declared(comparisons=rows)


pairs("V13", family, {"one of five": [0.02, 0.3, 0.5, 0.7, 0.9]}, [0.004, 0.3, 0.5, 0.7, 0.9])

# -------------------------------------------------------------------------------- V14 to V17: runs, arms, judges, loss

MANY = {"result": "r", "launched": 3, "values": [0.6, 0.62, 0.7], "reported": 0.64, "statistic": "mean"}
pairs(
    "V14",
    lambda flaw: declared(selections=[MANY | flaw]),
    {
        "said to be the best": {"statistic": "best", "reported": 0.7},
        "the best called a mean": {"reported": 0.7},
        "launched more": {"launched": 4},
        "one of them": {"statistic": "single", "values": [], "reported": 0.7},
    },
    {},
)
ARM = {
    "trials": 20,
    "searched": {"lr": [1.0, 2.0, 3.0]},
    "chosen": {"lr": 2.0},
    "steps": 9,
    "planned_steps": 9,
    "tokens": 99,
}
pairs(
    "V15",
    lambda flaw: declared(
        arms=[{"name": "o", "role": "ours", **ARM}, {"name": "b", "role": "baseline", **ARM, **flaw}]
    ),
    {"trials": {"trials": 5}, "edge": {"chosen": {"lr": 3.0}}, "schedule": {"steps": 8}, "tokens": {"tokens": 50}},
    {"trials": 19, "tokens": 98},
)
JUDGE = {"model": "openai/gpt-4o", "judged": ["acme/larch"], "pairwise": True, "both_orders": True,
         "order_agreement": 0.9, "human_labels": 150, "repeats": 3}  # fmt: skip
pairs(
    "V16",
    lambda flaw: declared(judges=[JUDGE | flaw]),
    {
        "kin": {"judged": ["openai/gpt-3.5"]},
        "one order": {"both_orders": False},
        "order decides": {"order_agreement": 0.65},
        "unchecked": {"human_labels": 20},
        "once": {"repeats": 1},
    },
    {},
)
LOSS = {"text": "w", "unit": "nats per token", "value": 3.0, "tokenizer": "gpt2"}
BYTES = LOSS | {"unit": "bits per byte", "bytes": 1000}
pairs(
    "V17",
    lambda rows: declared(losses=[{"model": f"m{i}", **row} for i, row in enumerate(rows)]),
    {
        "tokenizers": [LOSS, LOSS | {"tokenizer": "llama"}],
        "units": [BYTES, BYTES | {"unit": "bits per character"}],
        "bytes": [BYTES, BYTES | {"bytes": 999}],
    },
    [BYTES, BYTES | {"tokenizer": "llama"}],
)


def logged_loss(tokenizers: tuple[str, str]) -> Study:
    figure = replace(score(some), metric="loss", value=2.0)
    return study(*(log(task(some, scores=(figure,)), name=t, model=m, tokenizer=t)
                   for m, t in zip("ab", tokenizers, strict=True)))  # fmt: skip


pairs("V17", logged_loss, {"logs": ("gpt2", "llama")}, ("gpt2", "gpt2"))

# ----------------------------------------------------------------------- V18 to V20: long context, repeats, training


def long_context(names: list[str]) -> Study:
    return study(log(*(task(some, name=name) for name in names)))


FOUR = ["niah_multikey_1", "nolima", "ruler_vt", "ruler_cwe"]
pairs("V18", long_context, {"needles": ["niah_single_1", "niah_multikey_1"], "three": FOUR[:3]}, FOUR)
PAIRS["V18 saturated"] = (
    lambda: study(log(*(task(samples(400, 400), name=name) for name in FOUR))),
    lambda: study(log(*(task(samples(300 if name == "nolima" else 400, 400), name=name) for name in FOUR))),
)


def twice(changed: int) -> Study:
    again = [replace(s, answer="Other.", score=1 - (s.score or 0)) if at < changed else s for at, s in enumerate(some)]
    rows = {"batch-1": some, "batch-8": again}
    return study(*(log(task(row), name=name, temperature=0.0) for name, row in rows.items()))


pairs("V19", twice, {"one flips": 1}, 0)
PAIRS["V19 reported"] = (
    lambda: twice(1),
    lambda: declared(twice(1), repeatability=[{"what": "batch", "n": 40, "flips": 1, "reported": True}]),
)
PAIRS["V19 declared"] = tuple(
    (lambda flips=flips: declared(repeatability=[{"what": "batch", "n": 40, "flips": flips}])) for flips in (1, 0)
)


def trained(shift: float) -> Study:
    losses = {step: 3.0 / step for step in range(1, 50)}
    other = losses | {30: losses[30] + shift}
    runs = tuple(TrainingRun(Path(f"r{every}"), {"validate_every": every, "seed": 1}, row)
                 for every, row in ((10, losses), (0, other)))  # fmt: skip
    return Study(Path("r"), (), training=runs)


pairs("V20", trained, {"a bit": 1e-12}, 0.0)
pairs(
    "V20",
    lambda other: declared(training=[{"with_evaluation": "ab", "without_evaluation": other}]),
    {"weights": "cd"},
    "ab",
)

# ------------------------------------------------------------------------------------------- V23, V25: speed, energy

FAST = {"name": "f", "measure": "seconds", "run": "r", "quality_run": "r", "baseline": "SDPA", "speedup": 2.0,
        "percentiles": {"p50": 1.0, "p95": 2.0, "p99": 3.0}, "sparse": True, "crossover_length": 4096}  # fmt: skip
pairs(
    "V23",
    lambda flaw: declared(speed=[{k: v for k, v in (FAST | flaw).items() if v is not None}]),
    {
        "operations": {"measure": "flops"},
        "no quality": {"quality_run": None},
        "another run": {"quality_run": "s"},
        "against what": {"baseline": None},
        "no tail": {"percentiles": {"p50": 1.0}},
        "no crossover": {"crossover_length": None},
    },
    {},
)
USED = {"name": "e", "joules": 900.0, "source": "counter", "seconds": 9.0, "idle_watts": 20.0, "idle_subtracted": True,
        "synchronized": True, "warmed_up": True}  # fmt: skip
pairs(
    "V25",
    lambda flaw: declared(energy=[USED | flaw]),
    {
        "short": {"seconds": 4.0},
        "idle": {"idle_subtracted": False},
        "less than idling": {"source": "estimate", "marked_estimated": True, "idle_subtracted": False, "joules": 90.0},
        "early": {"synchronized": False},
        "cold": {"warmed_up": False},
        "polled": {"source": "polled power"},
        "unmarked": {"source": "rated power"},
        "ranked": {"source": "estimate", "marked_estimated": True, "ranked": True},
    },
    {},
)


@pytest.mark.parametrize("name", PAIRS)
def test_planted_flaw_and_clean_twin(name: str) -> None:
    flawed, twin = PAIRS[name]
    assert verdict(name[:3], flawed()) == "findings"
    assert verdict(name[:3], twin()) == "clean"


@pytest.mark.parametrize("rule", ["V12", "V13", "V15", "V16", "V17", "V18", "V20", "V23", "V25"])
def test_where_nothing_is_claimed_there_is_nothing_to_judge(rule: str) -> None:
    assert verdict(rule, one(some)) == "nothing to judge"


def test_a_judge_of_its_own_family_shows_in_the_log() -> None:
    made = one(some, judge="openai/gpt-4o", scorer="model_graded_qa")
    assert verdict("V16", made) == "undecided"
    assert verdict("V16", replace(made, logs=(replace(made.logs[0], model="openai/gpt-4o-mini"),))) == "findings"


def test_a_ledger_tells_of_deleted_runs_and_of_other_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        Run.create(tmp_path / f"s{seed}", command=["eval"], config={"model": "m", "seed": seed}).finish("finished")
    logs = [
        log(task(some), name=f"s{seed}", format="inazuma", settings={"model": "m", "seed": seed}) for seed in range(3)
    ]
    logs = [replace(one_log, path=tmp_path / one_log.path) for one_log in logs]
    saw = started(tmp_path, [])
    assert len(saw) == 3
    assert verdict("V14", study(*logs, started=saw)) == "clean"
    assert verdict("V14", study(logs[2], started=saw)) == "findings"
    shutil.rmtree(tmp_path / "s0")
    assert verdict("V14", study(*logs[1:], started=saw)) == "findings"
