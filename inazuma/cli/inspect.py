"""`inazuma inspect PATH`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SUMMARY = "say what a checkpoint is: family, sizes, what is inside, what fits this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a model folder, a GGUF file, or a folder in DeepSeek's layout"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    from inazuma.model.inspect import inspect

    report = inspect(arguments.path)
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    parameters, contains = report["parameters"], report["contains"]
    facts = {"family": f"{report['family']} ({report['format']})", "parameters": f"{parameters['total']:,}"}
    if parameters.get("active", parameters["total"]) != parameters["total"]:
        facts["parameters"] += f", {parameters['active']:,} of them active for each token"
    facts["tokenizer"] = f"{contains['tokenizer']:,} entries" if contains["tokenizer"] else "none"
    facts |= {name: "yes" if contains[name] else "no" for name in contains if name != "tokenizer"}
    if report["problem"]:
        facts["not for inazuma"] = report["problem"]
    if "context" in report:
        facts["context"] = f"{report['context']:,} tokens, {report['layers']} layers"
        facts["cache"] = f"{report['cache_bytes_per_token']:,} bytes a token in bfloat16"
    _table(console, [], [[name, value] for name, value in facts.items()])
    rows = [
        [row["kind"], row["dtype"], *(f"{row[name]:,}" for name in ("tensors", "parameters", "bytes"))]
        for row in report["tensors"]
    ]
    console.print()
    _table(console, ["tensors", "dtype", "count", "parameters", "bytes"], rows)
    if "fits" in report:
        console.print(f"\nin this machine's {report['memory'] / 2**30:.1f} GiB (estimated):", highlight=False)
        fits = [
            [name, f"{context:,} tokens of context" if context else "does not fit"]
            for name, context in report["fits"].items()
        ]
        _table(console, [], fits)


def _table(console: Any, headers: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*headers, box=None, pad_edge=False, show_header=bool(headers))
    for row in rows:
        table.add_row(*map(Text, row))
    for column in table.columns[2:]:
        column.justify = "right"
    console.print(table)
