"""A folder of runs against its ledger: every run there ever was, also those that somebody would rather not show.

A figure that is the best of many seeds looks better than it is (Singh et al., The Leaderboard Illusion, 2025): how many
runs of the same work there were is part of the result, so deleted, replaced and aborted ones are listed and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.files import read_json, sha256
from inazuma.runs.ledger import LEDGER, check_ledger, last_line
from inazuma.runs.run import MANIFEST, recipe

ENDED = ("finished", "failed", "interrupted")


@dataclass(frozen=True)
class Past:
    """One run of a folder's history."""

    run: str
    """Its folder's name."""
    id: str
    seeds: dict[str, int]
    state: str
    """`finished`, `failed`, `interrupted` (they ended in order), `never ended`, `replaced` (by a later run of that
    name), `deleted`, `edited` (its manifest is not the one the ledger saw) or `unknown` (to the ledger)."""
    recipe: str | None
    """Equal for runs of the same work with other seeds; None where nothing is left that says it."""
    siblings: tuple[str, ...] = ()
    """The folders of the other runs of the same recipe."""

    @property
    def ok(self) -> bool:
        return self.state not in ("deleted", "edited", "unknown")


@dataclass(frozen=True)
class History:
    """What a folder's ledger tells; `problem` is a broken chain, and then nothing else is to be trusted."""

    runs: tuple[Past, ...]
    head: str
    """SHA-256 of the ledger's last line: whoever notes it finds out later whether lines were cut off or rewritten."""
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and all(run.ok for run in self.runs)


def history(folder: Path) -> History:
    """The history of the runs in `folder`. Raises `UserError` when it has no ledger."""
    folder = Path(folder)
    if not (folder / LEDGER).is_file():
        raise UserError(f"{folder}: not a run folder (it has no {MANIFEST}), nor a folder of runs (no {LEDGER})")
    head = last_line(folder)
    manifests = {path.parent.name: _manifest(path) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
    try:
        entries = check_ledger(folder / LEDGER)
    except UserError as error:
        return History((), head, str(error))
    hashes = {entry["previous"] for entry in entries} | {head}
    known = {entry.get("id") for entry in entries}
    for name, manifest in manifests.items():
        # A run that was moved here followed lines of another ledger; it is `unknown` here.
        if manifest and manifest["id"] in known and manifest.get("follows", head) not in hashes:
            problem = f"{folder / LEDGER}: its last lines are missing: {name} followed a line that is not there"
            return History((), head, problem)
    runs = [_past(folder, identity, entries, manifests) for identity in dict.fromkeys(e.get("id") for e in entries)]
    for name, manifest in manifests.items():
        if manifest and manifest["id"] not in known:
            runs.append(Past(name, manifest["id"], dict(manifest.get("seeds", {})), "unknown", recipe(manifest)))
    return History(tuple(_with_siblings(runs)), head)


def _manifest(path: Path) -> dict[str, Any] | None:
    """A run's manifest; None where it is no run's, as datasets have one of their own."""
    try:
        manifest = read_json(path)
    except UserError:
        return None
    return manifest if isinstance(manifest, dict) and {"id", "command", "config"} <= manifest.keys() else None


def _past(folder: Path, identity: str, entries: list[dict[str, Any]], manifests: dict[str, Any]) -> Past:
    lines = [entry for entry in entries if entry.get("id") == identity]
    first, last = lines[0], lines[-1]
    name, state = last.get("run", "?"), last.get("event", "?")
    manifest = manifests.get(name)
    if manifest is None or manifest["id"] != identity:
        later = [entry for entry in entries[entries.index(last) + 1 :] if entry.get("run") == name]
        state = "replaced" if any(entry.get("event") == "started" for entry in later) else "deleted"
        manifest = None
        if (folder / name / MANIFEST).exists() and state == "deleted":
            state = "edited"
    elif sha256(folder / name / MANIFEST) != last.get("manifest"):
        state = "edited"
    elif state not in ENDED:
        state = "never ended"
    same = first.get("recipe") or (recipe(manifest) if manifest else None)
    return Past(name, identity, first.get("seeds") or dict((manifest or {}).get("seeds", {})), state, same)


def _with_siblings(runs: list[Past]) -> list[Past]:
    return [
        replace(run, siblings=tuple(other.run for other in runs if _same_work(run, other) and other is not run))
        for run in runs
    ]


def _same_work(a: Past, b: Past) -> bool:
    return a.recipe is not None and a.recipe == b.recipe


def siblings(run_path: Path, identity: str) -> tuple[str, ...]:
    """The other runs of this one's recipe that its folder's ledger knows; none where it was moved away from one.

    Raises `UserError` where the ledger's chain is broken: nobody knows then how many there were.
    """
    parent = Path(run_path).resolve().parent
    if not (parent / LEDGER).is_file():
        return ()
    past = history(parent)
    if past.problem is not None:
        raise UserError(past.problem)
    return next((run.siblings for run in past.runs if run.id == identity), ())
