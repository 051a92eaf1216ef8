"""The report of a comparison: what limits it first, then the verdicts, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.compare import Compared
from inazuma.evaluate.report import html_table, markdown_table
from inazuma.files import atomic_file, write_json
from inazuma.report.charts import percent
from inazuma.report.page import escape, page

COLUMNS = ("task", "A", "B", "B - A", "interval", "p (Holm)", "items", "verdict")


def notes(compared: Sequence[Compared]) -> list[str]:
    """What a reader must know before the verdicts."""
    found = []
    if any(one.comparison.seeds == (1, 1) for one in compared):
        found.append("One training seed a side: the verdicts are on these two models, not on how they were made.")
    for one in compared:
        if one.left_out:
            found.append(f"{one.task}: {one.left_out} items did not come back on both sides and are left out.")
        if one.bounds is not None:
            low, high = (_text(one, x, signed=True) for x in one.bounds)
            found.append(
                f"{one.task}: answers were cut off (A {one.truncated[0]}, B {one.truncated[1]}); whatever they would "
                f"have been, B - A lies between {low} and {high}."
            )
    return found


def _text(one: Compared, value: float, *, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞"
    sign = "+" if signed and value >= 0 else ""
    return sign + (percent(value, 1) if one.unit == "score" else f"{value:.4f}")


def rows(compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    """The table as text, the columns as `COLUMNS`."""
    found = []
    for one in compared:
        c = one.comparison
        low, high = (_text(one, end, signed=True) for end in c.interval)
        verdict = c.verdict
        if verdict == "equivalent":
            verdict += f" (within {_text(one, c.margin)})"
        found.append(
            (
                one.task if one.unit == "score" else f"{one.task} ({one.unit})",
                _text(one, c.mean_a),
                _text(one, c.mean_b),
                _text(one, c.difference, signed=True),
                f"{low} – {high}",
                f"{c.adjusted_p:.3g}",
                str(c.n) if c.clusters == c.n else f"{c.n} in {c.clusters}",
                verdict,
            )
        )
    return found


def as_json(compared: Sequence[Compared], of: tuple[str, str]) -> dict[str, Any]:
    """All of it; an end of an interval that is not finite is null."""
    lines = []
    for one in compared:
        c = {name: _finite(value) for name, value in asdict(one.comparison).items()}
        lines.append(
            {
                "task": one.task,
                "unit": one.unit,
                "verdict": one.comparison.verdict,
                "more_items": one.comparison.more_items,
                **c,
                "left_out": one.left_out,
                "truncated": list(one.truncated),
                "bounds": None if one.bounds is None else list(one.bounds),
            }
        )
    return {"a": of[0], "b": of[1], "notes": notes(compared), "comparisons": lines}


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_comparison(folder: Path, compared: Sequence[Compared], of: tuple[str, str], *, force: bool) -> None:
    """Writes `comparison.json`, `report.html` and `report.md`; a `UserError` where they are, unless `force`."""
    folder = Path(folder)
    if (folder / "comparison.json").exists() and not force:
        raise UserError(f"{folder}: holds a comparison; choose another folder or pass --force to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    lines, found = rows(compared), notes(compared)
    title = f"{of[1]} against {of[0]}"
    level = percent(1 - compared[0].comparison.alpha)
    method = (
        f"B - A on the same items, with an interval of {level}. p is two-sided and adjusted by Holm for all the tasks. "
        "Equivalent: the difference is shown to lie within the margin."
    )
    write_json(folder / "comparison.json", as_json(compared, of))
    bullets = "".join(f"- {line}\n" for line in found)
    with atomic_file(folder / "report.md") as handle:
        handle.write(f"# {title}\n\n{bullets}\n{markdown_table(COLUMNS, lines)}\n\n{method}\n")
    body = [f"<h1><b>{escape(of[1])}</b> against <b>{escape(of[0])}</b></h1>"]
    if found:
        body.append('<ul class="plain">' + "".join(f"<li>{escape(line)}</li>" for line in found) + "</ul>")
    body.append(html_table(COLUMNS, lines) + f'<p class="note">{escape(method)}</p>')
    with atomic_file(folder / "report.html") as handle:
        handle.write(page(title, "\n".join(body)))
