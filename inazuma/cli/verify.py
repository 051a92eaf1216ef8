"""`inazuma verify RUN`: recompute a run's figures from its raw records."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inazuma.runs import Check

SUMMARY = "recompute every figure of a run from its raw records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", type=Path, help="a run folder, with result.json and evidence.json")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the checks; 0 when all of them hold, 1 otherwise."""
    from inazuma.runs import verify

    checks = verify(arguments.path)
    if arguments.json:
        import dataclasses
        import json

        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        _print_table(checks)
    return 0 if all(check.ok for check in checks) else 1


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "figure or file", "reported", "recomputed", box=None, pad_edge=False)
    for check in checks:
        mark = Text("✓", style="green") if check.ok else Text("✗", style="bold red")
        name = Text(check.name) if check.problem is None else Text(f"{check.name}\n{check.problem}", style="red")
        table.add_row(mark, name, Text(_short(check.reported)), Text(_short(check.recomputed)))
    failed = [check.name for check in checks if not check.ok]
    console = Console()
    console.print(table)
    if failed:
        console.print(Text(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}", style="bold red"))
    else:
        console.print(Text(f"all {len(checks)} checks hold", style="bold green"))


def _short(value: Any) -> str:
    """A figure to ten digits; a hash to its first twelve."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
