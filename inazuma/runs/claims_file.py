"""Claims: statements with their figures, and the records that these are recomputed from.

A claims file is YAML:

    documents: [README.md, docs/*.md]       # every number in them is a figure of a claim, or is not measured
    left_out: [docs/log.md]
    records:                                # SHA-256 of each record; a run folder is vouched for by its manifest
      docs/demo/manifest.json: 4a9a...
    not_measured: [Python 3.11]             # what else is said with numbers; words that no number needs are told
    claims:
      - id: demo.loss
        text: A sparse model of the demo's size needs hardly more bits than its dense twin.
        command: inazuma demo --out runs/demo
        common: {formula: of_run, run: docs/demo}             # what its figures have in common
        figures:
          sparse: {value: "1.724", name: bits_per_byte.sparse}
          more: {value: "0.5", unit: 0.01, name: difference.dense.relative}
        stands:                             # the words around the figures, in each document
          README.md: ["| {sparse} |", "needs {more} % more bits"]

A figure's `value` is text, as it stands in the documents: its digits say how it was rounded, which is the tolerance
unless `within` gives one. `unit` is what it counts, such as 0.01 for per cent. `direction: at least` or `at most` makes
it a bound, judged against its `interval` (a formula too) with `margin` and `no_effect`. What is left is a formula of
`inazuma.runs.formulas`, computed from raw records. Nothing here needs PyTorch or a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inazuma import config
from inazuma.errors import UserError
from inazuma.runs.verdict import stated_number

_OF_A_BOUND = ("margin", "interval", "no_effect")
_OF_THE_CLAIM = ("value", "unit", "within", "direction", *_OF_A_BOUND)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where somebody else's claim stands: address, the very words and, where we have it, the document."""

    url: str
    quote: str
    sha256: str | None = None
    document: str | None = None
    """A file beside the claims file; its hash must be `sha256`, and a text must hold the quote."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement. Its figures are mappings as the module's text explains them."""

    id: str
    text: str
    command: str | None = None
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=dict)
    """What the formulas of all its figures have in common."""
    rows: dict[str, str] = field(default_factory=dict)
    """The rows of a table that a program wrote; see `inazuma.runs.claims_rows`."""
    stands: dict[str, list[str]] = field(default_factory=dict)
    source: Source | None = None
    audit: str | None = None
    """What `inazuma audit --json` printed of the claim's logs: its rules make the measurement invalid."""
    runs: int = 1
    """How many runs of this configuration the statement owns up to."""
    missing: str | None = None
    """Why nothing can be computed: the code, data or hardware that nobody else has."""

    def __post_init__(self) -> None:
        if not self.figures and self.missing is None:
            raise ValueError(f"the claim {self.id!r} has no figures; say in `missing` why nothing can be computed")
        for name, figure in self.figures.items():
            is_bound = figure.get("direction") is not None
            for key in ("within",) if is_bound else _OF_A_BOUND:
                if key in figure:
                    kind = "a bound, which has `margin`" if is_bound else "not a bound: it has no `direction`"
                    raise ValueError(f"{self.id}.{name}: `{key}` would be ignored, as the figure is {kind}")
            if self.rows and "value" not in figure:
                continue  # it is read from where it stands
            if not isinstance(figure.get("value"), str):
                raise ValueError(f'{self.id}.{name}: write the value as text, as it stands: value: "1.50"')
            try:
                stated_number(figure["value"])
            except ValueError:
                raise ValueError(f"{self.id}.{name}: {figure['value']!r} is not a number") from None
            if figure.get("direction") not in (None, "at least", "at most"):
                raise ValueError(f"{self.id}.{name}: direction: expected 'at least' or 'at most'")


@dataclass(frozen=True, kw_only=True)
class Claims:
    """A claims file."""

    claims: list[Claim]
    documents: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    records: dict[str, str] = field(default_factory=dict)
    waivers: dict[str, str] = field(default_factory=dict)
    """Records to be taken although they were made with changes that are in no revision, and why; always printed."""
    not_measured: list[str] = field(default_factory=list)


def load_claims(path: Path) -> Claims:
    """Reads a claims file. Raises `UserError` that names the file and the field."""
    claims = config.load(Claims, path)
    names = [claim.id for claim in claims.claims]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: two claims are called {sorted(twice)[0]!r}")
    return claims


def arguments_of(claim: Claim, name: str) -> dict[str, Any]:
    """A figure's formula and its arguments."""
    return claim.common | {key: value for key, value in claim.figures[name].items() if key not in _OF_THE_CLAIM}


def paths_of(how: Mapping[str, Any]) -> list[str]:
    """The records, as files or run folders, that a formula reads."""
    return [how[key] for key in ("record", "against", "run") if isinstance(how.get(key), str)]


def formulas_of(claim: Claim) -> list[dict[str, Any]]:
    """Of all figures and of their intervals, which may be given in full or by what differs."""
    found = []
    for name, figure in claim.figures.items():
        found.append(arguments_of(claim, name))
        if "interval" in figure:
            found.append(arguments_of(claim, name) | dict(figure["interval"]))
    return found
