"""The audit: reads what is at a path, asks every rule, sets waived findings apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from inazuma.errors import UserError
from inazuma.evaluate.audit.finding import Found, Nothing, Undecided
from inazuma.evaluate.audit.log import Study
from inazuma.evaluate.audit.readers import read_study
from inazuma.evaluate.audit.rules import RULES
from inazuma.evaluate.audit.waivers import WAIVERS, Waiver, read_waivers

Status = Literal["findings", "waived", "undecided", "clean", "nothing to judge"]


@dataclass(frozen=True)
class Finding:
    rule: str
    title: str
    item: str
    evidence: str
    fix: str
    source: str
    items: tuple[str, ...] = ()
    waived: str | None = None
    """The reason of the waiver that covers it."""


@dataclass(frozen=True)
class Open:
    """A rule that what was read does not decide for an item."""

    rule: str
    item: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """All that was found, waived, left undecided and read; `rules` holds every rule's status."""

    findings: tuple[Finding, ...]
    waived: tuple[Finding, ...]
    undecided: tuple[Open, ...]
    rules: dict[str, Status]
    read: tuple[dict[str, Any], ...]
    waivers: tuple[dict[str, Any], ...] = field(default=())

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)


def audit(path: Path, waivers: Path | None = None) -> Audit:
    """Audits a log file or a folder of them; `waivers` is read instead of the folder's own `waivers.yaml`.

    Raises `UserError` when something cannot be read.
    """
    path = Path(path)
    study = read_study(path)
    beside = (path if path.is_dir() else path.parent) / WAIVERS
    given = read_waivers(waivers or beside) if waivers is not None or beside.is_file() else []
    return judge(study, given)


def judge(study: Study, waivers: Sequence[Waiver] = (), rules: Sequence[ModuleType] = RULES) -> Audit:
    """Asks the rules about a study that was read."""
    if unknown := [waiver.rule for waiver in waivers if waiver.rule not in {rule.NUMBER for rule in RULES}]:
        raise UserError(f"waivers: no rule {unknown[0]!r}; the rules are V01 to V{len(RULES):02}")
    findings, waived, undecided = [], [], []
    statuses: dict[str, Status] = {}
    used = set()
    for rule in rules:
        words = list(rule.check(study))
        kept = 0
        for found in (word for word in words if isinstance(word, Found)):
            at = next((i for i, w in enumerate(waivers) if w.covers(rule.NUMBER, found.item, found.items)), None)
            reason = None if at is None else waivers[at].reason
            finding = Finding(
                rule.NUMBER, rule.TITLE, found.item, found.evidence, rule.FIX, rule.SOURCE, found.items, reason
            )
            if at is None:
                findings.append(finding)
                kept += 1
            else:
                waived.append(finding)
                used.add(at)
        own = [Open(rule.NUMBER, word.item, word.reason) for word in words if isinstance(word, Undecided)]
        undecided += own
        statuses[rule.NUMBER] = _status(kept, len(words), len(own), any(isinstance(w, Nothing) for w in words))
        if not kept and any(finding.rule == rule.NUMBER for finding in waived):
            statuses[rule.NUMBER] = "waived"
    return Audit(
        tuple(findings),
        tuple(waived),
        tuple(undecided),
        statuses,
        tuple(_read(study)),
        tuple({**asdict(waiver), "used": at in used} for at, waiver in enumerate(waivers)),
    )


def _status(found: int, words: int, undecided: int, nothing: bool) -> Status:
    if found:
        return "findings"
    if undecided:
        return "undecided"
    return "nothing to judge" if nothing and words else "clean"


def _read(study: Study) -> list[dict[str, Any]]:
    logs = [
        {
            "path": str(log.path),
            "format": log.format,
            "version": log.version,
            "model": log.model,
            "status": log.status,
            "tasks": {task.name: len(task.samples) for task in log.tasks},
        }
        for log in study.logs
    ]
    runs = [{"path": str(run.path), "format": "inazuma training", "steps": len(run.losses)} for run in study.training]
    return logs + runs
