"""`inazuma bench ops` and `inazuma bench serve`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SUMMARY = "measure operators and servers on this machine, against others' code"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="WHAT", required=True)
    ops = verbs.add_parser(
        "ops",
        help="time, memory and roofline of every operator",
        description="Times every operator, forward and backward, in turns with PyTorch's dense attention, measures the "
        "machine's copy and matrix-product ceilings, and writes a run folder with a report.",
        allow_abbrev=False,
    )
    ops.add_argument(
        "--lengths",
        default="1K,2K,4K,8K",
        metavar="N,N,...",
        help="tokens, such as 1024,2048 or 1K,128K (default: 1K,2K,4K,8K)",
    )
    ops.add_argument("--dtype", help="float32 or bfloat16 (default: bfloat16 on a GPU, float32 on a CPU)")
    ops.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="turns of which medians are taken (default: 3)"
    )
    ops.add_argument(
        "--limit",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="skip an operator at a length where its turns would take longer together (default: 30)",
    )
    ops.add_argument("--engine", default="auto", help="auto, or the name of one, such as cpu or reference")
    ops.add_argument(
        "--compare", action="store_true", help="add transformers, flash-attn, tilelang and fla where installed"
    )
    _add_run(ops, "runs/bench-ops")
    ops.set_defaults(what=_ops)
    serve = verbs.add_parser(
        "serve",
        help="a served model's speed, against llama.cpp and transformers",
        description="Serves the same weights with inazuma, with llama.cpp (xllamacpp) and with transformers, in turns, "
        "and writes a run folder with tokens a second: written for one client, read, and written for eight clients.",
        allow_abbrev=False,
    )
    serve.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    serve.add_argument("--gguf", type=Path, required=True, metavar="FILE", help="the same weights for llama.cpp")
    serve.add_argument("--turns", type=int, default=3, metavar="N", help="of which medians are taken (default: 3)")
    _add_run(serve, "runs/bench-serve")
    serve.set_defaults(what=_serve)


def _add_run(parser: argparse.ArgumentParser, folder: str) -> None:
    """What both ask of the run folder that they write."""
    parser.add_argument(
        "--out", type=Path, default=Path(folder), metavar="RUN", help=f"folder to write (default: {folder})"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    return arguments.what(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from inazuma.bench.comparison import FIGURES, run_comparison

    log = Console(stderr=True, highlight=False)
    result = run_comparison(
        arguments.out,
        folder=arguments.model,
        gguf=arguments.gguf,
        turns=arguments.turns,
        command=["inazuma", *sys.argv[1:]],
        force=arguments.force,
        say=lambda line: log.print(line, markup=False),
    )
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    table = Table("tokens a second", "one client", "reading", "eight clients", box=None)
    for server in result["servers"]:
        table.add_row(server["name"], *(f"{server[figure]['median']:,.0f}" for figure in FIGURES))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"check: inazuma verify {arguments.out}", markup=False, soft_wrap=True)
    return 0


def _ops(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from inazuma.bench.bench import BenchSize, parse_lengths, run_bench

    size = BenchSize(
        lengths=parse_lengths(arguments.lengths),
        dtype=arguments.dtype,
        repeats=arguments.repeats,
        limit=arguments.limit,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    bar = Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
    task = bar.add_task("starting", total=None)
    with bar:
        result = run_bench(
            arguments.out,
            size=size,
            command=["inazuma", *sys.argv[1:]],
            engine=arguments.engine,
            compare=arguments.compare,
            force=arguments.force,
            progress=lambda phase, done, total: bar.update(task, description=phase, completed=done, total=total),
        )
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        _print(result, arguments.out)
    return 0


def _print(result: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from inazuma.bench.report import COLUMNS, PASS_NAMES, ceilings_text, rows, verdict

    console = Console(highlight=False)
    found = list(rows(result))
    for kind, name in PASS_NAMES.items():
        table = Table(
            title=name, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
        shown = None
        for row in found:
            if row.kind == kind:
                table.add_row(*(row.cells if row.operator != shown else ("", *row.cells[1:])))
                shown = row.operator
        console.print(table)
        console.print()
    lines = [ceilings_text(result), verdict(result)]
    lines += [f"skipped: {line}" for line in result["skipped"]] + [f"missing: {line}" for line in result["missing"]]
    lines += [f"report:  {out / 'report.html'}", f"check:   inazuma verify {out}"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
