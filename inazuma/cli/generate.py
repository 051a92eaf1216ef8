"""`inazuma generate MODEL --prompt TEXT`"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

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
    parser.add_argument("--json", action="store_true", help="print {prompt, text} as JSON")


def run(arguments: argparse.Namespace) -> int:
    import torch

    import inazuma
    from inazuma.model.text import continue_text

    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    text = continue_text(
        inazuma.load(arguments.model, device="cuda" if torch.cuda.is_available() else "cpu"),
        prompt,
        arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) if arguments.json else prompt + text)
    return 0
