"""Bringing claims and documents up to date after a record changed: figures that were stated, never bounds.

A figure says what a record says, so a new record is a new figure. A bound (`direction`) is what somebody stands for:
one that no longer holds must be thought about, and is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from inazuma.errors import UserError
from inazuma.files import atomic_file, sha256
from inazuma.runs.claims import check_claims, record_files
from inazuma.runs.claims_file import Claim, load_claims
from inazuma.runs.claims_rows import load_complete
from inazuma.runs.stands import figures_in, pattern, read_document


def rewrite(path: Path) -> Iterator[str]:
    """Rewrites the claims file and its documents where the records say otherwise; yields a line for each change."""
    path = Path(path)
    yield from _hashes(path)
    found = {
        (claim.id, figure.name): figure.found
        for claim in check_claims(path).claims
        for figure in claim.figures
        if figure.verdict.claim == "refuted"
    }
    folder, text = path.resolve().parent, path.read_text(encoding="utf-8")
    rows = {claim.id for claim in load_claims(path).claims if claim.rows}
    for claim in load_complete(path).claims:
        new = {
            name: as_stated(figure["value"], found[claim.id, name])
            for name, figure in claim.figures.items()
            if "direction" not in figure and (claim.id, name) in found
        }
        for name, value in new.items():
            old = claim.figures[name]["value"]
            if claim.id not in rows:
                text = _in_claim(text, claim.id, name, old, value)
            yield f"{claim.id}.{name}: {old} is now {value}"
        stated = {name: figure["value"] for name, figure in claim.figures.items()} | new
        yield from _documents(claim, folder, stated)
    _write(path, text)


def as_stated(old: str, value: float) -> str:
    """A number as the old one was written: as many digits behind the point, and thousands set apart."""
    decimals = len(old.partition(".")[2])
    text = f"{value:,.{decimals}f}"
    plain_thousands = "," not in old and len(old.partition(".")[0]) > 3
    return text.replace(",", "") if plain_thousands else text


def _hashes(path: Path) -> Iterator[str]:
    claims, folder, text = load_complete(path), path.resolve().parent, path.read_text(encoding="utf-8")
    for name in record_files(claims, folder):
        if not (folder / name).is_file():
            continue
        new, old = sha256(folder / name), claims.records.get(name)
        if old is None:
            text, changed = re.subn(r"(?m)^records:.*\n", f"records:\n  {name}: {new}\n", text, count=1)
            if not changed:
                raise UserError(f"{path}: has no line `records:` to write hashes under")
        elif old != new:
            line = rf"(?m)^(\s+(['\"]?){re.escape(name)}\2:\s*)(['\"]?){re.escape(old)}\3(\s*(?:#.*)?)$"
            text, changed = re.subn(line, rf"\g<1>{new}\g<4>", text)
            if changed != 1:
                raise UserError(f"{path}: write {new} yourself; it is not found as `{name}: {old}`")
        if old != new:
            yield f"{name}: SHA-256 {old or 'none'} is now {new}"
    _write(path, text)


def _in_claim(text: str, claim: str, name: str, old: str, new: str) -> str:
    """The claims file with one figure's value changed, everything else as it was, comments included."""
    value = re.compile(
        rf'(^  - id: {re.escape(claim)}\n(?:(?!  - id: ).*\n)*?      {re.escape(name)}:\s*\{{?\s*value: ")'
        rf'{re.escape(old)}(")',
        re.MULTILINE,
    )
    text, changed = value.subn(rf"\g<1>{new}\g<2>", text)
    if changed != 1:
        raise UserError(f'{claim}.{name}: write {new} yourself; it is not found as `{name}: {{value: "{old}"`')
    return text


def _documents(claim: Claim, folder: Path, stated: dict[str, str]) -> Iterator[str]:
    for document, places in claim.stands.items():
        text = before = read_document(folder / document)
        for words in places:
            matches = list(pattern(words).finditer(text))
            if len(matches) != 1:
                continue  # verify says so
            match = matches[0]
            pieces, end = [], match.start()
            for place, name in enumerate(figures_in(words)):
                start, stop = match.span(f"f{place}")
                pieces += [text[end:start], stated[name]]
                end = stop
            text = text[: match.start()] + "".join(pieces) + text[end:]
        if text != before:
            _write(folder / document, text)
            yield f"{document}: rewritten for {claim.id}"


def _write(path: Path, text: str) -> None:
    if path.read_text(encoding="utf-8") != text:
        with atomic_file(path) as handle:
            handle.write(text)
