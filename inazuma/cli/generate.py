"""`inazuma generate MODEL --prompt TEXT`"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inazuma.errors import UserError

if TYPE_CHECKING:
    from inazuma.model import Transformer

SUMMARY = "write text with a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder, such as runs/demo/model")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="how the text begins; - reads standard input")
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="stop after N tokens (default: 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 takes the likeliest token (default: 0)"
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest tokens only")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="draw from the likeliest tokens that hold this share"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="leave a mixture's experts on disk and stay within so much memory, such as 8GB (CPU, Linux)",
    )
    parser.add_argument(
        "--quantize",
        choices=("none", "int8", "int4"),
        default="none",
        help="of the weights, on the CPU (default: none)",
    )
    parser.add_argument("--json", action="store_true", help="print {prompt, text} as JSON")


def run(arguments: argparse.Namespace) -> int:
    from inazuma.model.text import continue_text

    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    text = continue_text(
        _load(arguments),
        prompt,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if arguments.json else prompt + text)
    return 0


def _load(arguments: argparse.Namespace) -> Transformer:
    import torch

    import inazuma
    from inazuma.model.quantize import quantize
    from inazuma.model.streaming import load_streaming

    if arguments.memory is not None:
        if arguments.quantize != "none":
            raise UserError("--memory: experts on disk are read as they are; leave out --quantize")
        return load_streaming(arguments.model, parse_size("--memory", arguments.memory))
    if arguments.quantize != "none":
        return quantize(inazuma.load(arguments.model), arguments.quantize)
    return inazuma.load(arguments.model, device="cuda" if torch.cuda.is_available() else "cpu")


def parse_size(option: str, size: str) -> int:
    """ "1.5GB" in bytes; KB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", size.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{option} {size}: expected a size such as 800MB, 1.5GB or 2GiB")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" KMGT".index(unit.upper()) if unit else 0))
