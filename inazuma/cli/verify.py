"""`inazuma verify PATH`: recompute figures from raw records: a run's, a claims file's; or a folder of runs' history."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from inazuma.runs import Check
    from inazuma.runs.claims import ClaimResult, Report
    from inazuma.runs.history import History

SUMMARY = "recompute every figure of a run or a claims file from the raw records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="a run folder (with result.json and evidence.json), a claims file (.yaml), or a folder of runs with its "
        "ledger: then every run there ever was is listed, deleted ones too",
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="bring a claims file and its documents up to date with records that changed, and print what changed",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the checks; 0 when all of them hold, 1 otherwise."""
    from rich.console import Console

    from inazuma.errors import UserError
    from inazuma.runs import verify
    from inazuma.runs.claims import check_claims
    from inazuma.runs.history import history
    from inazuma.runs.rewrite import rewrite
    from inazuma.runs.run import MANIFEST

    path, console = arguments.path, Console(soft_wrap=True, highlight=False)
    is_claims = path.suffix in (".yaml", ".yml")
    if arguments.rewrite:
        if not is_claims:
            raise UserError("verify: --rewrite needs a claims file (.yaml)")
        for change in rewrite(path):
            Console(stderr=True, soft_wrap=True, highlight=False).print(change, markup=False)
    if is_claims:
        report = check_claims(path)
        ok, show = report.ok, _print_claims
    elif path.is_dir() and not (path / MANIFEST).is_file():
        report = history(path)
        ok, show = report.ok, _print_history
    else:
        report = verify(path)
        ok, show = all(check.ok for check in report), _print_checks
    if arguments.json:
        import json

        print(json.dumps(_plain(report), indent=2, ensure_ascii=False))
    else:
        show(console, report)
    return 0 if ok else 1


def _plain(facts: Any) -> Any:
    """Dataclasses as mappings, each with its `ok` where it has one."""
    import dataclasses

    if dataclasses.is_dataclass(facts):
        fields = {field.name: _plain(getattr(facts, field.name)) for field in dataclasses.fields(facts)}
        return fields | ({"ok": facts.ok} if hasattr(facts, "ok") else {})
    return [_plain(item) for item in facts] if isinstance(facts, list | tuple) else facts


def _print_checks(console: Console, checks: list[Check]) -> None:
    table = _table("figure or file", "reported", "recomputed")
    for check in checks:
        table.add_row(
            _mark(check.ok), _named(check.name, check.problem), _short(check.reported), _short(check.recomputed)
        )
    console.print(table)
    failed = [check.name for check in checks if not check.ok]
    _conclude(console, f"all {len(checks)} checks hold", failed, f"of {len(checks)} checks failed")


def _print_claims(console: Console, report: Report) -> None:
    table = _table("claim", "measurement", "verdict", "figures")
    for claim in report.claims:
        count = f"{sum(figure.verdict.claim == 'supported' for figure in claim.figures)} of {len(claim.figures)} hold"
        table.add_row(_mark(claim.ok), _named(claim.id, None), claim.measurement, claim.claim, count)
    console.print(table)
    for claim in report.claims:
        for problem in _problems(claim):
            console.print(f"{claim.id}: {problem}", style="red", markup=False)
    for remark in dict.fromkeys(remark for claim in report.claims for remark in claim.remarks):
        console.print(remark, markup=False)
    for line in report.uncovered:
        console.print(line, style="red", markup=False)
    failed = [claim.id for claim in report.claims if not claim.ok]
    failed += [f"{len(report.uncovered)} numbers or words in no claim"] if report.uncovered else []
    _conclude(console, f"all {len(report.claims)} claims hold", failed, f"problems in {len(report.claims)} claims")


def _problems(claim: ClaimResult) -> list[str]:
    figures = [f"{one.name}: {one.verdict.claim}: {one.verdict.why}" for one in claim.figures if one.verdict.why]
    return [*claim.reasons, *figures, *claim.misplaced]


def _print_history(console: Console, history: History) -> None:
    table = _table("run", "state", "seeds", "other runs of the same work")
    for run in history.runs:
        seeds = ", ".join(f"{name} {value}" for name, value in run.seeds.items())
        table.add_row(_mark(run.ok), _named(run.run, None), run.state, seeds, ", ".join(run.siblings))
    if history.runs:
        console.print(table)
    largest = max((len(run.siblings) + 1 for run in history.runs), default=1)
    if largest > 1:
        console.print(f"V14: a figure of the best of them is the best of up to {largest} runs; report all of them")
    console.print(f"head of the ledger, to be noted elsewhere: {history.head}")
    failed = [f"{run.run} ({run.state})" for run in history.runs if not run.ok]
    failed += [history.problem] if history.problem else []
    _conclude(console, f"all {len(history.runs)} runs of the ledger are there", failed, "problems")


def _table(*columns: str) -> Any:
    from rich.table import Table

    return Table("", *columns, box=None, pad_edge=False)


def _mark(ok: bool) -> Any:
    from rich.text import Text

    return Text("✓", style="green") if ok else Text("✗", style="bold red")


def _named(name: str, problem: str | None) -> Any:
    from rich.text import Text

    return Text(f"{name}\n{problem}", style="red") if problem else Text(name)


def _conclude(console: Console, good: str, failed: list[str], bad: str) -> None:
    from rich.text import Text

    if failed:
        console.print(Text(f"{len(failed)} {bad}: {', '.join(failed)}", style="bold red"))
    else:
        console.print(Text(good, style="bold green"))


def _short(value: Any) -> Any:
    """A figure to ten digits; a hash to its first twelve."""
    from rich.text import Text

    def text(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.10g}"
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"
        return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)

    return Text(text(value))
