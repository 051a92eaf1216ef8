"""`inazuma rightsize TASK.yaml` or `inazuma rightsize DATA.csv`"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from inazuma.errors import needs_extra

SUMMARY = "find the smallest model that is good enough for a task, from its labelled examples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task",
        type=Path,
        metavar="TASK",
        help="a task in YAML (see docs/rightsize.md), or labelled texts: .csv, .tsv, .jsonl or .parquet",
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="folder to write (default: runs/rightsize-TASK), which must not exist"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        dest="overrides",
        help="change a field of the task, e.g. --set margin=0.05 (may be repeated)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with RUN, from the rung it had come to")
    parser.add_argument("--force", action="store_true", help="replace an existing RUN")
    parser.add_argument("--json", action="store_true", help="print result.json instead of sentences")


def run(arguments: argparse.Namespace) -> int:
    needs_extra("rightsize", "sklearn", "datasketch")
    from inazuma.rightsize.ladder import rightsize
    from inazuma.rightsize.sentences import verdict
    from inazuma.rightsize.task import load_task

    # Ended by a signal it must still end the server that it may have started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    task = load_task(arguments.task, arguments.overrides)
    out = arguments.out or Path("runs") / f"rightsize-{arguments.task.stem}"
    result = rightsize(
        task,
        out,
        command=["inazuma", *sys.argv[1:]],
        force=arguments.force,
        resume=arguments.resume,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
        return 0
    print(verdict(task, result))
    print(f"report:  {out / 'report.html'}")
    print(f"model:   {out / 'model'}")
    print(f"check:   inazuma verify {out}")
    return 0
