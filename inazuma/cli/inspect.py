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
    parser.add_argument(
        "--plan",
        action="store_true",
        help="say what running it needs, from its config.json alone: memory by precision, and with experts on disk",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    from inazuma.model.inspect import inspect

    if arguments.plan:
        needs = _needs(arguments.path)
        if arguments.json:
            print(json.dumps(needs, indent=2))
        else:
            _print_plan(needs)
        return 0
    report = inspect(arguments.path)
    if arguments.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)
    return 0


PLANNED_TOKENS = 4096
"""The length of text that a plan is made for."""


def _needs(path: Path) -> dict[str, Any]:
    from inazuma.model.checkpoint import read_config
    from inazuma.model.plan import WEIGHTS, plan

    config, _ = read_config(path.parent if path.name == "config.json" else path)
    needs = plan(config)
    return {
        "parameters": needs.parameters,
        "active": needs.active_parameters,
        "tokens": PLANNED_TOKENS,
        "cache_bytes_per_token": needs.cache_bytes_per_token(),
        "weights": {
            kind: {
                "all": needs.weight_bytes(kind),
                "whole": needs.limit(1.0, kind, tokens=PLANNED_TOKENS),
                "resident": needs.resident_bytes(kind),
                "expert": needs.expert_bytes(kind),
                "smallest_limit": needs.smallest_limit(kind, tokens=PLANNED_TOKENS),
                "half_of_the_experts": needs.limit(0.5, kind, tokens=PLANNED_TOKENS),
                "read_per_token_at_half": needs.bytes_read_per_token(0.5, kind),
            }
            for kind in WEIGHTS
        },
    }


def _print_plan(needs: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(
        f"{needs['parameters'] / 1e9:,.3f} billion parameters, {needs['active'] / 1e9:,.3f} active for each token; "
        f"cache: {needs['cache_bytes_per_token']:,} bytes a token\nfor texts of {needs['tokens']:,} tokens:\n",
        highlight=False,
        soft_wrap=True,
    )
    names = {
        "all": "all weights",
        "whole": "to run it whole",
        "resident": "all but the routed experts",
        "expert": "one routed expert",
        "smallest_limit": "least memory, experts on disk",
        "half_of_the_experts": "memory for half of the experts",
        "read_per_token_at_half": "read from disk a token with that",
    }
    kinds = list(needs["weights"])
    if not needs["weights"][kinds[0]]["expert"]:
        names = {name: names[name] for name in ("all", "whole")}
    rows = [[label, "", *(_size(needs["weights"][kind][name]) for kind in kinds)] for name, label in names.items()]
    _table(console, ["", "", *kinds], rows)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


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
