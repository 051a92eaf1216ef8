"""`inazuma data build PATH... --out DIR`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

SUMMARY = "prepare a corpus: text, JSON lines, Parquet -> tokenizer and shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    build = verbs.add_parser(
        "build",
        help="train a tokenizer and write the shards",
        description="Reads text files, JSON lines (.jsonl, .ndjson), Parquet, Arrow and saved Hugging Face datasets; "
        "drops exact duplicates, splits by content, and writes a tokenizer, memory-mapped shards and a manifest.",
        allow_abbrev=False,
    )
    build.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder to search for files")
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write; it must not exist")
    vocabulary = build.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--vocab-size", type=int, default=8192, metavar="N", help="tokens of the trained vocabulary (default: 8192)"
    )
    vocabulary.add_argument("--tokenizer", type=Path, metavar="FILE", help="use this tokenizer.json, train none")
    build.add_argument(
        "--validation-fraction", type=float, default=0.02, metavar="F", help="share of the documents (default: 0.02)"
    )
    build.add_argument(
        "--text-field", default="text", metavar="NAME", help="JSON field or column with the text (default: text)"
    )
    build.add_argument("--force", action="store_true", help="replace an existing output folder")
    build.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from inazuma.data.build import build

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, Any] = {}

    def show(phase: str, done: int, total: int | None) -> None:
        if phase not in tasks:
            for earlier in tasks.values():
                bar.update(earlier, total=1, completed=1)
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done, total=total)

    with bar:
        manifest = build(
            arguments.paths,
            arguments.out,
            vocab_size=arguments.vocab_size,
            tokenizer=arguments.tokenizer,
            validation_fraction=arguments.validation_fraction,
            text_field=arguments.text_field,
            force=arguments.force,
            progress=show,
        )
    print(json.dumps(manifest, indent=2, ensure_ascii=False) if arguments.json else _summary(manifest, arguments.out))
    return 0


def _summary(manifest: dict[str, Any], out: Path) -> str:
    found, tokenizer = manifest["documents"], manifest["tokenizer"]
    lines = [
        f"{name:<10} {split['documents']:>12,} documents {split['tokens']:>14,} tokens {split['bytes']:>15,} bytes"
        for name, split in manifest["splits"].items()
    ]
    made = "trained here" if tokenizer["trained"] else "as given"
    lines.append(f"{'tokenizer':<10} {tokenizer['vocab_size']:>12,} entries, {made}")
    remarks = {
        "exact duplicates dropped": found["duplicates"],
        "empty documents dropped": found["empty"],
        "files skipped because they are not text": found["skipped_files"],
        "documents with invalid UTF-8, replaced": found["invalid_utf8_documents"],
        "documents that this tokenizer does not restore exactly": found["not_restored"],
    }
    lines += [f"{'':<10} {count:>12,} {what}" for what, count in remarks.items() if count]
    lines.append(f"written to {out}")
    return "\n".join(lines)
