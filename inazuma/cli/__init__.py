"""The command line: `inazuma VERB`, one module a verb.

A verb's module has `SUMMARY`, `add_arguments(parser)` and `run(arguments) -> int`. It imports what is heavy inside
`run`: all verbs are imported for `inazuma --help`, which must not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import inazuma
from inazuma.errors import RunError, UserError

# fmt: off
VERBS = (
    "data", "presets", "train", "generate", "chat", "serve", "convert", "inspect", "demo", "bench",
    "eval", "compare", "audit", "contamination", "rightsize", "verify", "reproduce",
)
# fmt: on

_INTERRUPTED = 130
"""128 + SIGINT: what a shell reports of a program that this signal ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: 0 done, 2 the person's mistake, 1 a failure; never a traceback for these.

    Any other exception is a bug of ours and shows its traceback.
    """
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.verb.run(arguments)
        # Whoever reads our output may have left; that must come out here, not while Python shuts down.
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        # The same exit code as rich gives, which most of our output passes through.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RunError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("inazuma: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inazuma",
        description="Train Transformers with DeepSeek Sparse Attention, from a CPU to any GPU.",
        epilog="`inazuma VERB --help` explains a verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"inazuma {inazuma.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        verb = importlib.import_module(f"inazuma.cli.{name}")
        summary = verb.SUMMARY[0].upper() + verb.SUMMARY[1:]
        child = verbs.add_parser(name, help=verb.SUMMARY, description=f"{summary}.", allow_abbrev=False)
        verb.add_arguments(child)
        child.set_defaults(verb=verb)
    return parser


def _fail(error: Exception, code: int) -> int:
    print("inazuma: error:", " ".join(str(error).splitlines()), file=sys.stderr)
    return code
