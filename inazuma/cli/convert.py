"""`inazuma convert SRC DST`"""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "write a model in another format or precision: Hugging Face, GGUF, DeepSeek's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="a model folder, a GGUF file, or a folder in DeepSeek's layout"
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="what to write; *.gguf is a GGUF file")
    parser.add_argument(
        "--to",
        choices=("hf", "gguf", "deepseek"),
        help="the format of DST (default: gguf for *.gguf, else hf, a Hugging Face folder)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the weights (default: as they are; quantised ones become float32)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing DST")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from inazuma.model.convert import convert

    to = arguments.to or ("gguf" if arguments.destination.suffix == ".gguf" else "hf")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    convert(arguments.source, arguments.destination, to=to, dtype=dtype, force=arguments.force)
    print(f"written to {arguments.destination}")
    return 0
