"""`inazuma demo`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SUMMARY = "train a small sparse-attention model and its dense twin on real text, and report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="RUN", help="folder to write (default: runs/demo)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="your own text instead of the built-in corpus (sources of Python packages that PyTorch installs)",
    )
    parser.add_argument(
        "--vocab-size", type=int, default=4096, metavar="N", help="tokens of the trained vocabulary (default: 4096)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")


def run(arguments: argparse.Namespace) -> int:
    from inazuma.demo.demo import DemoSize, run_demo
    from inazuma.demo.report import verdict
    from inazuma.train.trainer import Interrupted

    command = ["inazuma", *sys.argv[1:]]
    try:
        result = run_demo(
            arguments.out,
            data=arguments.data,
            command=command,
            force=arguments.force,
            size=DemoSize(vocab_size=arguments.vocab_size),
        )
    except Interrupted as interruption:
        print(f"demo: {interruption}; start it again with --force", file=sys.stderr)
        return 130
    print(verdict(result))
    print(f"report:  {arguments.out / 'report.html'}")
    print(f"model:   {arguments.out / 'model'}")
    print(f'try:     inazuma generate {arguments.out / "model"} --prompt "def "')
    print(f"check:   inazuma verify {arguments.out}")
    return 0
