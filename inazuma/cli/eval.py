"""`inazuma eval MODEL --tasks ...`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SUMMARY = "evaluate a model, with every sample kept and no figure without its interval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or an address such as http://localhost:8000/v1")
    parser.add_argument(
        "--tasks",
        default="long-context,hanoi,river-crossing",
        metavar="NAME,NAME,...",
        help="bits-per-byte, long-context or one of its families, hanoi, river-crossing, and lm-eval:NAME for any of "
        "lm-evaluation-harness (default: long-context,hanoi,river-crossing)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder to write")
    parser.add_argument("--text", action="append", default=[], metavar="PATH", help="held-out text for bits-per-byte")
    parser.add_argument(
        "--lengths", default="1K", metavar="N,N,...", help="of long-context, tokens of 4 bytes (default: 1K)"
    )
    parser.add_argument(
        "--items", type=int, default=50, metavar="N", help="of each long-context family at each length (default: 50)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="limit of an answer (default: each task's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the generated items (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N documents of each of lm-eval's tasks")
    parser.add_argument("--include-path", metavar="FOLDER", help="further tasks for lm-eval, as YAML")
    parser.add_argument("--name", help="of the model at an address that has several")
    parser.add_argument("--chat", action="store_true", help="put prompts to an address as messages of a chat")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json of the model at an address")
    parser.add_argument("--force", action="store_true", help="replace an existing run folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from inazuma.bench.bench import parse_lengths
    from inazuma.evaluate.evaluate import Settings, evaluate
    from inazuma.evaluate.models import open_model

    settings = Settings(
        tasks=tuple(filter(None, (name.strip() for name in arguments.tasks.split(",")))),
        text=tuple(arguments.text),
        lengths=parse_lengths(arguments.lengths),
        items=arguments.items,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        include_path=arguments.include_path,
        limit=arguments.limit,
    )
    model = open_model(arguments.model, name=arguments.name, chat=arguments.chat, tokenizer=arguments.tokenizer)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    bar = Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    )
    task = bar.add_task("starting", total=None)
    with bar:
        result = evaluate(
            model,
            settings,
            arguments.out,
            command=["inazuma", *sys.argv[1:]],
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

    from inazuma.evaluate import report
    from inazuma.evaluate.outcome import SAMPLES, read_samples

    console = Console(highlight=False)
    samples = read_samples(out) if (out / SAMPLES).exists() else []
    for line in report.warnings(result, samples):
        console.print(f"! {line}", markup=False, style="bold red")
    for columns, rows in ((report.COLUMNS, report.rows(result)), (report.TEXT_COLUMNS, report.text_rows(result))):
        if rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for column in columns:
                table.add_column(column, justify="left" if column == columns[0] else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    for line in (f"report:  {out / 'report.html'}", f"check:   inazuma verify {out}"):
        console.print(line, markup=False, soft_wrap=True)
