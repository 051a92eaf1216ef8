"""`inazuma compare A B`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from inazuma.errors import UserError

if TYPE_CHECKING:
    from inazuma.evaluate.compare import Compared

SUMMARY = "decide whether model B is better than model A, from evaluations of the same items"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a run of inazuma eval; with commas: of several training seeds")
    parser.add_argument("b", metavar="B", help="the run or runs that are compared with it")
    parser.add_argument(
        "--margin", type=float, default=0.02, metavar="X", help="scores this close are equivalent (default: 0.02)"
    )
    parser.add_argument(
        "--relative-margin",
        type=float,
        default=0.01,
        metavar="X",
        help="losses this close, as a share of A's, are equivalent (default: 0.01)",
    )
    parser.add_argument("--alpha", type=float, default=0.05, metavar="X", help="of the whole family (default: 0.05)")
    parser.add_argument("--per-token", action="store_true", help="losses per token, of models with one tokenizer")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write comparison.json, report.html and report.md")
    parser.add_argument("--force", action="store_true", help="replace what is in --out")
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparisons; 0 whatever the verdicts are."""
    from inazuma.evaluate.compare import compare_runs, names
    from inazuma.evaluate.compare_report import as_json, write_comparison

    a, b = ([Path(path) for path in side.split(",") if path] for side in (arguments.a, arguments.b))
    if not 0 < arguments.alpha < 1:
        raise UserError(f"--alpha {arguments.alpha}: expected a number between 0 and 1")
    compared = compare_runs(
        a,
        b,
        margin=arguments.margin,
        relative_margin=arguments.relative_margin,
        alpha=arguments.alpha,
        per_token=arguments.per_token,
    )
    of = names(a, b)
    if arguments.out is not None:
        write_comparison(arguments.out, compared, of, force=arguments.force)
    if arguments.json:
        print(json.dumps(as_json(compared, of), indent=2, ensure_ascii=False))
    else:
        _print(compared, of)
    return 0


def _print(compared: list[Compared], of: tuple[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from inazuma.evaluate.compare_report import COLUMNS, notes, rows

    console = Console(highlight=False)
    console.print(f"B: {of[1]}\nagainst A: {of[0]}", markup=False)
    for line in notes(compared):
        console.print(f"! {line}", markup=False, style="bold red")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    for row in rows(compared):
        table.add_row(*row)
    console.print(table)
