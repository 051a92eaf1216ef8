"""Runs all lessons and writes what follows from them: the table in README.md, claims.yaml and its records.

python examples/claims/gallery.py
inazuma verify examples/claims/claims.yaml
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml
from lesson import Lesson, Statement

from inazuma.files import atomic_file, sha256, write_json

HERE = Path(__file__).resolve().parent
LESSONS = (
    "river_crossing",
    "tower_of_hanoi",
    "best_of_k_seeds",
    "untuned_baseline",
    "saturated_needle",
    "unpaired_comparison",
    "bootstrap_standard_error",
    "galactica",
    "alphafold_3",
    "price_per_request",
)
BEGIN, END = "<!-- verdicts -->\n", "<!-- end of verdicts -->\n"


def run() -> dict[str, Lesson]:
    """Every lesson, by its name."""
    return {name: importlib.import_module(name).lesson() for name in LESSONS}


def readme(text: str, lessons: dict[str, Lesson]) -> str:
    """The README with its table of verdicts replaced."""
    lines = ["| lesson | what is said | measurement | claim |", "|---|---|---|---|"]
    for name, lesson in lessons.items():
        for i, one in enumerate(lesson.statements):
            link = "" if i else f"[{name.replace('_', ' ')}]({name}.py)"
            lines.append(f"| {link} | {one.text} | {one.measurement} | {one.claim} |")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}"


def claim(name: str, one: Statement) -> dict[str, Any]:
    """The statement as `inazuma verify` reads it, its figure to be found in the lesson's record."""
    entry: dict[str, Any] = {
        "id": f"{name}.{one.id}",
        "text": one.text,
        "command": f"python examples/claims/{name}.py",
    }
    if one.source is not None:
        entry["source"] = dict(zip(("url", "quote"), one.source, strict=True))
    if one.missing is not None:
        return entry | {"missing": one.missing}
    optional = {
        "within": one.within,
        "direction": one.direction,
        "no_effect": one.no_effect,
        "margin": one.margin or None,
    }
    figure = {"value": one.stated, "formula": "value", "record": f"records/{name}.json", "field": f"{one.id}.found"}
    figure |= {key: value for key, value in optional.items() if value is not None}
    if one.interval is not None:
        figure["interval"] = {"field": f"{one.id}.interval"}
    entry["figures"] = {"figure": figure}
    if one.rules:
        entry["audit"] = f"records/{name}.{one.id}.audit.json"
    return entry


def write(folder: Path, lessons: dict[str, Lesson]) -> None:
    """Writes records and claims.yaml; what each lesson found, and the rules that a measurement breaks."""
    records = folder / "records"
    records.mkdir(exist_ok=True)
    for old in records.glob("*.json"):
        old.unlink()
    hashes, claims = {}, []
    for name, lesson in lessons.items():
        judged = [one for one in lesson.statements if one.missing is None]
        found = {one.id: {"found": float(one.found)} for one in judged}
        for one in judged:
            if one.interval is not None:
                found[one.id]["interval"] = [float(end) for end in one.interval]
            if one.rules:
                findings = [{"rule": rule, "item": "all", "evidence": why} for rule, why in one.rules]
                write_json(records / f"{name}.{one.id}.audit.json", {"findings": findings})
        write_json(records / f"{name}.json", found)
        hashes[f"records/{name}.json"] = sha256(records / f"{name}.json")
        claims += [claim(name, one) for one in lesson.statements]
    text = yaml.safe_dump({"records": hashes, "claims": claims}, sort_keys=False, allow_unicode=True, width=116)
    with atomic_file(folder / "claims.yaml") as handle:
        handle.write(f"# Written by gallery.py; most of these claims are wrong, and verifying them says so.\n{text}")


if __name__ == "__main__":
    results = run()
    page = readme((HERE / "README.md").read_text(encoding="utf-8"), results)
    with atomic_file(HERE / "README.md") as handle:
        handle.write(page)
    write(HERE, results)
    print(page)
