"""Tables that a program wrote: one claim whose figures and words repeat for each row, read from where they stand.

      - id: audit.rates
        text: How many planted flaws each rule catches.
        command: python benchmarks/audit.py
        rows: {V01: V01 output limit, V02: V02 prompt truncated}        # each row's key and its label
        common: {formula: value, record: benchmarks/results/audit.json}
        figures:
          planted: {field: [rules, "{row}", planted]}
          caught: {field: [rules, "{row}", caught]}
        stands:
          docs/audit.md: ["| {label} | {planted} | {caught} |"]

The figures are `V01.planted` and so on; what is stated is what the document says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.runs.claims_file import Claim, Claims, load_claims
from inazuma.runs.stands import figures_in, pattern, read_document


def load_complete(path: Path) -> Claims:
    """Reads a claims file, with the claims that have rows written out."""
    claims = load_claims(path)
    folder = Path(path).resolve().parent
    return replace(claims, claims=[_written_out(claim, folder) if claim.rows else claim for claim in claims.claims])


def _written_out(claim: Claim, folder: Path) -> Claim:
    figures: dict[str, dict[str, Any]] = {}
    stands: dict[str, list[str]] = {document: [] for document in claim.stands}
    for row, label in claim.rows.items():
        for name, figure in claim.figures.items():
            figures[f"{row}.{name}"] = _filled(figure, row)
        for document, places in claim.stands.items():
            for words in places:
                words = words.replace("{row}", row).replace("{label}", label)
                for name in claim.figures:
                    words = words.replace(f"{{{name}}}", f"{{{row}.{name}}}")
                stands[document].append(words)
                matches = list(pattern(words).finditer(read_document(folder / document)))
                if len(matches) != 1:
                    raise UserError(f"{document}: {claim.id}: says {words!r} {len(matches)} times, not once")
                for place, name in enumerate(figures_in(words)):
                    if name in figures:
                        figures[name].setdefault("value", matches[0][f"f{place}"])
    if unsaid := [name for name, figure in figures.items() if "value" not in figure]:
        raise UserError(f"{claim.id}: no document says its figure {unsaid[0]!r}")
    return replace(claim, figures=figures, stands=stands, rows={})


def _filled(value: Any, row: str) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, row) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, row) for item in value]
    return value.replace("{row}", row) if isinstance(value, str) else value
