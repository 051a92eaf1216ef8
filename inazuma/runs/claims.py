"""The verdicts on a claims file: hashes, figures recomputed from raw records, and both axes; no GPU, no PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inazuma.errors import UserError
from inazuma.files import read_json, sha256
from inazuma.runs.claims_file import Claim, Claims, Source, arguments_of, formulas_of, paths_of
from inazuma.runs.claims_rows import load_complete
from inazuma.runs.formulas import Figures, formula
from inazuma.runs.history import siblings
from inazuma.runs.run import MANIFEST, Run
from inazuma.runs.stands import misplaced, uncovered
from inazuma.runs.verdict import WORST_FIRST, Claimed, Verdict, judge_bound, judge_figure, rounding, stated_number
from inazuma.runs.verify import EVIDENCE, Check, verify


@dataclass(frozen=True)
class FigureResult:
    """A figure as it is stated and as the records give it, both in the figure's unit."""

    name: str
    stated: str
    found: float | None
    verdict: Verdict


@dataclass(frozen=True)
class ClaimResult:
    """A claim's verdict on both axes."""

    id: str
    text: str
    measurement: Literal["valid", "invalid", "not computable"]
    reasons: tuple[str, ...]
    """Why the measurement is not valid; rules by their number first."""
    rules: tuple[str, ...]
    claim: Claimed
    figures: tuple[FigureResult, ...]
    remarks: tuple[str, ...]
    misplaced: tuple[str, ...]
    """Documents that do not say what the claim says."""

    @property
    def ok(self) -> bool:
        return self.measurement == "valid" and self.claim == "supported" and not self.misplaced


@dataclass(frozen=True)
class Report:
    """All verdicts on a claims file, and the numbers in its documents that no claim covers."""

    claims: tuple[ClaimResult, ...]
    uncovered: tuple[str, ...]
    """A line for each such number, and for each entry of `not_measured` that excuses none."""

    @property
    def ok(self) -> bool:
        return not self.uncovered and all(claim.ok for claim in self.claims)


@formula
def of_run(figures: Figures, *, run: str, name: str) -> Any:
    """A run's figure, recomputed from its records as its evidence says; `interval.0` is the first item of a list."""
    folder = figures.record_path(run)
    inside = Figures(folder, read_json(folder / EVIDENCE))
    if name in inside.evidence:
        return inside.figure(name)
    whole, _, place = name.rpartition(".")
    values = inside.figure(whole or name)
    if not isinstance(values, list) or not place.isdecimal() or int(place) >= len(values):
        raise UserError(f"{run}: no figure {name!r}")
    return values[int(place)]


def check_claims(path: Path) -> Report:
    """Judges every claim of a file from the records beside it, in seconds."""
    claims, folder = load_complete(path), Path(path).resolve().parent
    records = {name: _record_problem(folder, name, claims) for name in _records_of(claims)}
    results = [_judge(claim, folder, records, claims.waivers) for claim in claims.claims]
    return Report(tuple(results), tuple(uncovered(claims, folder)))


def _records_of(claims: Claims) -> list[str]:
    used = [path for claim in claims.claims for how in formulas_of(claim) for path in paths_of(how)]
    return list(dict.fromkeys(used))


def record_files(claims: Claims, folder: Path) -> list[str]:
    """The files whose hashes vouch for all that the claims stand on."""
    return [_vouching(folder, name) for name in _records_of(claims)]


def _vouching(folder: Path, name: str) -> str:
    return f"{name}/{MANIFEST}" if (folder / name).is_dir() else name


def _record_problem(folder: Path, name: str, claims: Claims) -> tuple[str, str] | None:
    """What is wrong with a record: ("invalid" or "not computable", why)."""
    path, listed = folder / name, _vouching(folder, name)
    file, is_run = folder / listed, path.is_dir()
    if not file.is_file():
        return "not computable", f"{name}: no such record"
    found, recorded = sha256(file), claims.records.get(listed)
    if recorded is None and not is_run:
        return "invalid", f"{name}: no hash vouches for this record; its SHA-256 is {found}"
    if recorded is not None and found != recorded:
        return "invalid", f"{listed}: edited: its SHA-256 is {found}, recorded is {recorded}"
    if is_run:
        try:
            failed = [check for check in verify(path) if not check.ok]
        except UserError as error:
            return "not computable", str(error)
        if failed:
            return "invalid", "; ".join(f"{name}/{check.name}: {_told(check)}" for check in failed)
    facts = read_json(file) if file.suffix == ".json" else {}
    code = facts.get("code") if isinstance(facts, dict) else None
    if isinstance(code, dict) and code.get("clean") is False and name not in claims.waivers:
        return "invalid", f"{name}: made with changes that are in no revision of the code"
    return None


def _told(check: Check) -> str:
    found = "" if check.recomputed is None else f" (recorded {check.reported}, found {check.recomputed})"
    return f"{check.problem}{found}"


def _judge(
    claim: Claim,
    folder: Path,
    records: Mapping[str, tuple[str, str] | None],
    waivers: Mapping[str, str],
) -> ClaimResult:
    used = list(dict.fromkeys(path for how in formulas_of(claim) for path in paths_of(how)))
    problems = [problem for path in used if (problem := records[path])]
    if claim.missing is not None:
        problems.append(("not computable", claim.missing))
    rules: list[tuple[str, str]] = []
    try:
        rules = _rules(claim, folder, used)
    except UserError as error:
        problems.append(("not computable", str(error)))
    problems += [("invalid", f"{rule}: {why}") for rule, why in rules]
    if problem := _source_problem(claim.source, folder):
        problems.append(("invalid", problem))
    measured: list[FigureResult] = []
    if not problems:
        evidence = {name: arguments_of(claim, name) for name in claim.figures}
        evidence |= {
            f"{name} (interval)": evidence[name] | dict(figure["interval"])
            for name, figure in claim.figures.items()
            if "interval" in figure
        }
        figures = Figures(folder, evidence)
        try:
            measured = [_figure(figures, name, figure) for name, figure in claim.figures.items()]
        except UserError as error:
            problems.append(("not computable", str(error)))
    if problems:
        unjudged = Verdict("not judged", "")
        measured = [FigureResult(name, figure["value"], None, unjudged) for name, figure in claim.figures.items()]
    kinds = {kind for kind, _ in problems}
    verdicts = {figure.verdict.claim for figure in measured} or {"not judged"}
    return ClaimResult(
        id=claim.id,
        text=claim.text,
        measurement="invalid" if "invalid" in kinds else "not computable" if kinds else "valid",
        reasons=tuple(why for _, why in problems),
        rules=tuple(dict.fromkeys(rule for rule, _ in rules)),
        claim=min(verdicts, key=WORST_FIRST.index),
        figures=tuple(measured),
        remarks=tuple(f"waived: {path}: {waivers[path]}" for path in used if path in waivers),
        misplaced=tuple(misplaced(claim, folder)),
    )


def _figure(figures: Figures, name: str, figure: Mapping[str, Any]) -> FigureResult:
    unit = float(figure.get("unit", 1))
    text = figure["value"]
    found = figures.figure(name)
    if not isinstance(found, int | float):  # true counts as 1
        raise UserError(f"{name}: the records give {found!r}, not a number")
    stated, found = stated_number(text), found / unit
    direction = figure.get("direction")
    if direction is None:
        verdict = judge_figure(stated, found, float(figure.get("within", rounding(text))))
    else:
        interval = [end / unit for end in figures.figure(f"{name} (interval)")] if "interval" in figure else None
        verdict = judge_bound(
            stated,
            found,
            at_least=direction == "at least",
            margin=float(figure.get("margin", 0)),
            interval=interval,
            no_effect=None if figure.get("no_effect") is None else float(figure["no_effect"]),
        )
    return FigureResult(name, text, found, verdict)


def _rules(claim: Claim, folder: Path, used: list[str]) -> list[tuple[str, str]]:
    """The rules of honest evaluation that fire: those of its audit, and picking the best of several runs."""
    found = []
    if claim.audit is not None:
        audit = read_json(folder / claim.audit)
        if not isinstance(audit, dict) or "findings" not in audit:
            raise UserError(f"{claim.audit}: is not what `inazuma audit --json` prints: it has no 'findings'")
        for finding in audit["findings"]:
            if not finding.get("waived"):
                found.append((str(finding["rule"]), f"{finding.get('item') or 'all'}: {finding.get('evidence')}"))
    for path in used:
        if (folder / path / MANIFEST).is_file():
            others = siblings(folder / path, Run.open(folder / path).manifest["id"])
            if len(others) >= claim.runs:
                more = f"{path} is one of {len(others) + 1} runs of this configuration ({', '.join(others)})"
                found.append(("V14", f"{more}, the claim owns up to {claim.runs}"))
    return found


def _source_problem(source: Source | None, folder: Path) -> str | None:
    if source is None or source.document is None:
        return None
    path = folder / source.document
    if not path.is_file():
        return f"{source.document}: the source is not there"
    content = path.read_bytes()
    if source.sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != source.sha256:
        return f"{source.document}: is another document: its SHA-256 is {found}, recorded is {source.sha256}"
    if " ".join(source.quote.split()) not in " ".join(content.decode("utf-8", "replace").split()):
        return f"{source.document}: does not hold the words that are quoted"
    return None
