"""Figures with evidence: writing them, and recomputing them from the raw records.

`result.json` holds the figures as people read them (nested, its top level is the figures themselves). `evidence.json`
beside it says, under each figure's dotted name (`recall_at_k.0` is the first item of a list), how it follows from which
record; `inazuma.runs.formulas` knows the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.files import read_json, sha256, write_json
from inazuma.runs.formulas import Evidence, Figures
from inazuma.runs.ledger import LEDGER, check_ledger
from inazuma.runs.run import MANIFEST, Run

RESULT = "result.json"
EVIDENCE = "evidence.json"
_RELATIVE_TOLERANCE = 1e-9
# A difference of two nearly equal figures may have lost the digits that a relative tolerance asks for.
_ABSOLUTE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Check:
    """One thing that was checked: a figure against its recomputation, or a file against its recorded SHA-256."""

    name: str
    reported: Any
    recomputed: Any
    ok: bool
    problem: str | None = None


def produce(run_path: Path, evidence: Evidence) -> dict[str, Any]:
    """Computes every figure that `evidence` names from the run's records; writes `result.json` and `evidence.json`.

    Returns the figures, nested. Raises `UserError` when a record lacks what a formula needs.
    """
    run_path = Path(run_path)
    figures = Figures(run_path, evidence)
    result = _nested({name: figures.figure(name) for name in evidence})
    write_json(run_path / RESULT, result)
    write_json(run_path / EVIDENCE, {name: dict(how) for name, how in evidence.items()})
    return result


def verify(run_path: Path) -> list[Check]:
    """Recomputes every figure of a run that has ended, and the hashes of the records they stand on.

    A figure without evidence, evidence without a figure, a record that changed or that the manifest does not know, and
    a manifest that is not the one the ledger beside the run saw last are failed checks. Raises `UserError` when there
    is nothing to check: no run folder, no `result.json` or no `evidence.json`.
    """
    run = Run.open(run_path)
    result, evidence = read_json(run.path / RESULT), read_json(run.path / EVIDENCE)
    if not isinstance(result, dict):
        raise UserError(f"{run.path / RESULT}: not a mapping of figures")
    if not isinstance(evidence, dict) or not all(isinstance(how, dict) for how in evidence.values()):
        raise UserError(f"{run.path / EVIDENCE}: not a mapping of figures to formulas")
    reported = list(_leaves(result, evidence))
    figures = Figures(run.path, evidence)
    checks = [_check_figure(figures, name, value) for name, value in reported]
    checks += [
        Check(name, None, None, False, f"{EVIDENCE} names a figure that {RESULT} does not have")
        for name in sorted(evidence.keys() - {name for name, _ in reported})
    ]
    records = {how[key] for how in evidence.values() for key in ("record", "against") if isinstance(how.get(key), str)}
    checks += [_check_file(run, figures, name) for name in (RESULT, EVIDENCE, *sorted(records))]
    return checks + check_manifest(run)


def _check_figure(figures: Figures, name: str, reported: Any) -> Check:
    try:
        recomputed = figures.figure(name)
    except UserError as error:
        return Check(name, reported, None, False, str(error).removeprefix(f"{name}: "))
    ok = _agree(reported, recomputed)
    return Check(name, reported, recomputed, ok, None if ok else "the records give another figure")


def _check_file(run: Run, figures: Figures, name: str) -> Check:
    recorded = run.manifest.get("artefacts", {}).get(name)
    try:
        found = sha256(figures.record_path(name))
    except (OSError, UserError) as error:
        return Check(name, recorded, None, False, f"cannot be read ({error})")
    if recorded is None:
        problem = "the manifest does not know this file"
        if "artefacts" not in run.manifest:
            problem = f"the run has not ended ({run.manifest['status']})"
        return Check(name, None, found, False, problem)
    ok = found == recorded
    return Check(name, recorded, found, ok, None if ok else "the file changed after the run ended")


def check_manifest(run: Run) -> list[Check]:
    """The manifest against the ledger; nothing where the run was moved away from its ledger."""
    ledger = run.path.resolve().parent / LEDGER
    if not ledger.exists():
        return []
    found = sha256(run.path / MANIFEST)
    try:
        seen = [line.get("manifest") for line in check_ledger(ledger) if line.get("id") == run.manifest["id"]]
    except UserError as error:
        return [Check(MANIFEST, None, found, False, str(error))]
    if not seen:
        return []
    ok = seen[-1] == found
    return [Check(MANIFEST, seen[-1], found, ok, None if ok else "the manifest is not the one that the ledger saw")]


def _agree(reported: Any, recomputed: Any) -> bool:
    if isinstance(reported, bool) or isinstance(recomputed, bool):
        return reported is recomputed
    if isinstance(reported, int | float) and isinstance(recomputed, int | float):
        return math.isclose(reported, recomputed, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE)
    if isinstance(reported, list) and isinstance(recomputed, list):
        return len(reported) == len(recomputed) and all(map(_agree, reported, recomputed))
    return reported == recomputed


def _leaves(value: Any, evidence: Evidence, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values: as deep as the evidence names figures, and to the bottom where it names none."""
    if name in evidence or not isinstance(value, dict | list) or (name and not value):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, evidence, f"{name}.{key}" if name else str(key))


def _nested(figures: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "c.0": 2} as {"a": {"b": 1}, "c": [2]}."""
    result: dict[str, Any] = {}
    for name, value in figures.items():
        *sections, key = name.split(".")
        here = result
        for section in sections:
            here = here.setdefault(section, {})
            if not isinstance(here, dict):
                raise UserError(f"{name}: {section!r} is a figure and cannot hold others")
        if key in here:
            raise UserError(f"{name}: other figures lie below this name")
        here[key] = value
    return {key: _listed(value) for key, value in result.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    value = {key: _listed(item) for key, item in value.items()}
    numbers = [str(number) for number in range(len(value))]
    return [value[number] for number in numbers] if value and value.keys() == set(numbers) else value
