"""`inazuma contamination DATA ITEMS`: which evaluation items stand in the training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inazuma.evaluate.contamination import Contamination

SUMMARY = "find which evaluation items stand in the training data, and score both parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of `inazuma data build`, or text files")
    parser.add_argument(
        "items", type=Path, metavar="ITEMS", help="samples.jsonl of `inazuma eval`, or JSON lines with a field `text`"
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="the model's training run: where it read DATA and nothing else, an item that is not found is clean",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    """0 when no item was found in the data, 1 when some were."""
    from inazuma.evaluate.contamination import contamination

    found = contamination(arguments.items, arguments.data, run=arguments.run)
    if arguments.json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        _print(found)
    return 1 if any(item.state in ("overlap", "near duplicate") for item in found.items) else 0


def _print(found: Contamination) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for item in found.items:
        if item.state in ("overlap", "near duplicate"):
            first = item.places[0]
            start, stop = first["item_words"]
            console.print(
                f"{item.state}: {item.name}: {item.why}, {item.documents} documents", style="red", markup=False
            )
            console.print(f"    words {start} to {stop} in {first['source']}: {first['text'][:200]}", markup=False)
    for state, score in found.scores.items():
        interval = "" if score.interval is None else f" ({score.interval[0]:.3f} to {score.interval[1]:.3f})"
        mean = "no score" if score.mean is None else f"score {score.mean:.3f}{interval}"
        console.print(f"{state:<16} {score.items:>8,} items   {mean}", markup=False)
    data = found.data
    console.print(f"searched {data['documents']:,} documents, {data['words']:,} words; {found.why}; {found.limits}")
