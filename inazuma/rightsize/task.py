"""A task: labelled examples, what a good answer is, and what it may cost. This is the YAML that `inazuma rightsize`
reads; every field but `data` has a default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inazuma import config
from inazuma.errors import UserError

RUNGS = ("majority", "tfidf", "embedding", "scratch", "pretrained", "lora", "distilled", "prompted", "cascade")
"""The ladder, smallest first."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the answer must keep to; None: no limit. A rung beyond one is measured and never chosen."""

    latency_ms: float | None = None
    """Of the 99th percentile at the traffic stated, waiting included."""
    memory_mb: float | None = None
    """Of the process that answers, at its peak."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Prices and traffic, all in one currency. The defaults are placeholders to be replaced: no price is measured."""

    requests_per_second: float = 1.0
    """The traffic, averaged over the time that is paid for."""
    peak_factor: float = 3.0
    """How many times the average the machines must carry."""
    machine_hour: float = 0.05
    """One machine like this one, without a GPU."""
    gpu_hour: float = 0.50
    """A GPU like this one, of rungs that answer on one."""
    kilowatt_hour: float = 0.30
    watts: float = 30.0
    """What the processor is taken to draw while it computes, where it has no counter."""
    gpu_watts: float = 200.0
    """The same of a GPU."""
    api_input_mtok: float = 0.0
    """A million tokens read, at an address that charges."""
    api_output_mtok: float = 0.0
    label: float = 0.10
    """What one labelled example cost."""
    months: float = 12.0
    """How long labels and training are written off over."""
    price_band: float = 2.0
    """The factor up and down that `machine_hour` and `gpu_hour` are uncertain by; the break-even is reckoned at both
    ends too."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value == 0 and name in ("requests_per_second", "peak_factor", "months", "price_band")):
                raise UserError(f"{name}: must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """A large model that is asked: a folder, an address, or a file of what it said."""

    folder: Path | None = None
    """A model folder, which `inazuma serve` is started with."""
    address: str | None = None
    """Any OpenAI-compatible address, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """The model's name at `address`."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the address asks for one."""
    outputs: Path | None = None
    """JSON lines with `text`, `output` and `milliseconds` (`input_tokens` and `output_tokens` too, if known or priced;
    `stop_reason`, of which "length" is an answer cut off): what some model answered to the texts of all splits but
    train."""
    instructions: str | None = None
    """What it is told; by default the labels or the schema in plain words."""
    examples: int = 4
    """The most labelled examples shown in a prompt; the tuning tries fewer too."""
    most_characters: int = 600
    """Of a text; the middle of a longer one is left out."""
    retries: int = 5

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.folder, self.address, self.outputs)) != 1:
            raise UserError("name one of folder, address and outputs")
        if self.address is not None and self.model is None:
            raise UserError("model: missing; an address serves several")


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The shape and the training of the small model of this project."""

    hidden_size: int = 128
    layers: int = 2
    vocab_size: int = 2048
    context: int = 128
    """Tokens of text and answer together; the middle of a longer text is left out."""
    tokens: int = 600_000
    """Of training in each trial, at most; how often each example is seen follows."""
    epochs: int = 16
    """How often each example is seen, at most."""
    batch_tokens: int = 2048


@dataclass(frozen=True, kw_only=True)
class Task:
    data: Path
    """A .csv, .tsv, .jsonl or .parquet file, one example a row."""
    kind: Literal["classification", "multi-label", "extraction", "generation"] = "classification"
    text: str | None = None
    """The column of the text; None: the one with a usual name."""
    label: str | None = None
    """The column of the answer. multi-label: a JSON list, or labels with `;` between. extraction: a JSON object."""
    group: str | None = None
    """Rows of a group (an author, a document) never lie on two sides of a split."""
    time: str | None = None
    """The test split is later than what is trained on. Compared as numbers if all are, else as text (ISO dates)."""
    split: str | None = None
    """A column that says train, validation, calibration or test; None: the rows are shared out here."""
    schema: dict[str, Any] | None = None
    """extraction: the JSON schema of the answer, an object of strings, lists of strings or enums."""
    scorer: Literal["exact", "f1"] = "exact"
    """generation: an answer counts if it is the same, or by the words it shares (as in SQuAD)."""
    fold_case: bool = False
    """Labels that differ only in case are one label."""
    margin: float = 0.02
    """The loss of quality that would not matter; quality lies between 0 and 1."""
    confidence: float = 0.95
    shares: tuple[float, float, float, float] = (0.55, 0.1, 0.1, 0.25)
    """Of train, validation (which tunes), calibration (which sets thresholds) and test."""
    max_rows: int = 20_000
    """Rows kept of a larger file, a random sample; memory stays bounded."""
    rungs: tuple[str, ...] = RUNGS
    trials: int = 3
    """Configurations that each rung may try, on the validation split."""
    stop_early: bool = True
    """Leave out larger rungs once no rung could be better by more than the margin."""
    curve: tuple[int, ...] = (32, 100, 316, 1000, 3162)
    """Label counts of the learning curves."""
    limits: Limits = field(default_factory=Limits)
    costs: Costs = field(default_factory=Costs)
    embedding: Path | None = None
    """A folder of static embeddings as model2vec writes them, or a language model, whose token embeddings are taken."""
    checkpoint: Path | None = None
    """A model folder that `pretrained` starts from."""
    lora: Path | None = None
    """A model folder that `lora` adapts."""
    lora_tokens: int = 60_000
    """Of training in each of its trials, at most."""
    unlabelled: Path | None = None
    """A file of texts without answers, which `distilled` has its teacher label."""
    transformer: Transformer = field(default_factory=Transformer)
    prompted: Prompted | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise UserError(f"margin: lies between 0 and 1, got {self.margin}")
        if not 0.5 < self.confidence < 1:
            raise UserError(f"confidence: lies between 0.5 and 1, got {self.confidence}")
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"shares: four positive numbers that sum to 1, got {list(self.shares)}")
        unknown = [name for name in self.rungs if name not in RUNGS]
        if unknown:
            raise UserError(f"rungs: unknown {unknown[0]!r}; known are {', '.join(RUNGS)}")
        if self.trials < 1 or self.max_rows < 100:
            raise UserError("trials: at least 1; max_rows: at least 100")
        if self.kind == "extraction":
            check_schema(self.schema)
        elif self.schema is not None:
            raise UserError("schema: belongs to kind: extraction")


def check_schema(schema: dict[str, Any] | None) -> None:
    """Raises `UserError` unless the schema is an object of strings, lists of strings and enums of strings."""
    if schema is None:
        raise UserError("schema: missing; extraction needs the JSON schema of its answers")
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
        raise UserError("schema: expected {type: object, properties: {...}}")
    for name, kind in properties.items():
        field_kind(name, kind)


def field_kind(name: str, kind: Any) -> Literal["span", "spans", "enum"]:
    """What a property of the schema holds: a piece of the text, several, or one of the values listed."""
    kind = kind if isinstance(kind, dict) else {}
    if isinstance(kind.get("enum"), list) and all(isinstance(value, str) for value in kind["enum"]):
        return "enum"
    if kind.get("type") == "string":
        return "span"
    if kind.get("type") == "array" and kind.get("items", {}).get("type") == "string":
        return "spans"
    raise UserError(f"schema: {name}: expected a string, an array of strings or an enum of strings")


def load_task(path: Path, overrides: tuple[str, ...] = ()) -> Task:
    """The task in a YAML file, or the default one of a data file."""
    path = Path(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return config.load(Task, path, overrides)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return config.from_dict(Task, config.override({"data": str(path)}, overrides), where=str(path))
