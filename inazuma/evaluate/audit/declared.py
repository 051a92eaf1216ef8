"""`study.yaml`: what no log says of itself, stated by whoever publishes the results.

Logs hold answers and scores. Which comparisons were drawn from them, how much the baseline was tuned, how speed and
energy were measured: these stand in a file beside the logs, in the words below. Everything is optional; a rule that
needs what is not stated says that it is undecided. Paths are relative to the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from inazuma import config

DECLARATION = "study.yaml"


@dataclass(frozen=True)
class Comparison:
    """A claimed difference between two logs (`a` minus `b`), named by their file or folder."""

    a: str
    b: str
    task: str
    difference: float
    claim: Literal["better", "worse", "equivalent", "none"] = "better"
    test: Literal["paired", "unpaired", "none"] | None = None
    p_value: float | None = None
    interval: tuple[float, float] | None = None
    correction: Literal["none", "holm", "bonferroni", "benjamini-hochberg"] | None = None


@dataclass(frozen=True)
class Arm:
    """What was compared and how much it was tuned: `searched` maps a setting to the values tried, `chosen` to the best.

    `steps` of `planned_steps` were run; `tokens`, `flops` and `seconds` are what training took.
    """

    name: str
    role: Literal["ours", "baseline"]
    trials: int | None = None
    searched: dict[str, list[float]] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    planned_steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Selection:
    """How many runs were launched for a result, and what of them is reported (`values`: the score of each)."""

    result: str
    launched: int | None = None
    values: list[float] = field(default_factory=list)
    reported: float | None = None
    statistic: Literal["mean", "median", "best", "single", "all"] | None = None


@dataclass(frozen=True)
class Judge:
    """A model that graded answers. `order_agreement` is the share of pairs with the same verdict in both orders."""

    model: str
    family: str | None = None
    judged: list[str] = field(default_factory=list)
    pairwise: bool = False
    both_orders: bool | None = None
    order_agreement: float | None = None
    human_labels: int | None = None
    repeats: int | None = None


@dataclass(frozen=True)
class Loss:
    """A loss figure of one model on one text: `bytes` are the raw UTF-8 bytes that were predicted."""

    model: str
    text: str
    unit: Literal["nats per token", "bits per token", "token perplexity", "bits per byte", "bits per character"]
    value: float
    tokenizer: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class FormatScore:
    """A model's score (of `n` items) with one of several prompt templates that mean the same."""

    model: str
    task: str
    template: str
    score: float
    n: int
    headline: bool = False


@dataclass(frozen=True)
class Speed:
    """A claimed speed. `baseline` is what it was compared with; lengths are sequence lengths in tokens."""

    name: str
    measure: Literal["seconds", "tokens per second", "flops"]
    run: str | None = None
    quality_run: str | None = None
    baseline: str | None = None
    speedup: float | None = None
    percentiles: dict[str, float] = field(default_factory=dict)
    sparse: bool = False
    crossover_length: int | None = None
    lengths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Energy:
    """A claimed energy: `source` says what it stands on, `seconds` how long the window was."""

    name: str
    joules: float
    source: Literal["counter", "polled power", "rated power", "estimate"] | None = None
    seconds: float | None = None
    idle_watts: float | None = None
    idle_subtracted: bool | None = None
    synchronized: bool | None = None
    warmed_up: bool | None = None
    marked_estimated: bool = False
    ranked: bool = False


@dataclass(frozen=True)
class Repeatability:
    """A canary: the same items asked again, `what` was changed (the batch size), `flips` of `n` came out other."""

    what: str
    n: int
    flips: int
    reported: bool = False


@dataclass(frozen=True)
class TrainingTwins:
    """The same training with and without evaluation in between: SHA-256 of the final weights."""

    with_evaluation: str
    without_evaluation: str


@dataclass(frozen=True)
class Texts:
    """JSON lines with a `text` each: what the model was trained on, and the splits; `group` may name a line's group."""

    pretraining: list[Path] = field(default_factory=list)
    train_split: list[Path] = field(default_factory=list)
    test_split: list[Path] = field(default_factory=list)
    clean_part_reported: bool = False
    fitted_on: list[Literal["train", "test", "all"]] = field(default_factory=list)
    """What normaliser, vocabulary or tokenizer of the split's experiment were fitted on."""


@dataclass(frozen=True)
class Declared:
    comparisons: list[Comparison] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)
    judges: list[Judge] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    formats: list[FormatScore] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    energy: list[Energy] = field(default_factory=list)
    repeatability: list[Repeatability] = field(default_factory=list)
    training: list[TrainingTwins] = field(default_factory=list)
    texts: Texts | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Reported intervals of tasks whose log holds none, by task."""


def read_declared(folder: Path) -> Declared:
    """The `study.yaml` of `folder`, or an empty declaration; a `UserError` names file and field of a mistake."""
    path = folder / DECLARATION
    return config.load(Declared, path) if path.is_file() else Declared()
