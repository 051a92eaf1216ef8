"""`inazuma serve MODEL`"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from inazuma.cli.generate import parse_size
from inazuma.errors import UserError, needs_extra

SUMMARY = "answer over HTTP as OpenAI's API does, with a model on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model folder, such as runs/demo/model")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1); others need a key"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    parser.add_argument("--name", metavar="NAME", help="the model's name in the API (default: the folder's)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="what clients must send; may be repeated; INAZUMA_API_KEY does the same, unseen by other users",
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file with such keys, one a line")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of prompt and answer (default: the model's)")
    parser.add_argument(
        "--quantize",
        choices=("auto", "none", "int8", "int4"),
        default="auto",
        help="of the weights, on the CPU (default: auto)",
    )
    parser.add_argument("--memory", metavar="SIZE", help="leave a mixture's experts on disk and stay within, as 8GB")
    parser.add_argument("--cache-memory", metavar="SIZE", help="for what is kept of the tokens read, such as 2GB")
    parser.add_argument(
        "--cache-format",
        choices=("auto", "bf16", "fp8"),
        default="auto",
        help="of the cache (default: bf16, or float32 where the weights are)",
    )
    parser.add_argument("--rate-limit", metavar="N/min", help="requests a minute that each key may send")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page's origin that may use this server, such as http://localhost:3000; may be repeated",
    )
    parser.add_argument("--grace", type=float, default=10.0, metavar="S", help="seconds to finish in (default: 10)")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts to the log; they never are otherwise")


def run(arguments: argparse.Namespace) -> int:
    needs_extra("serve", "fastapi", "uvicorn", "llguidance", "httpx2")
    from inazuma.serve.security import Security, is_loopback, read_keys

    keys = read_keys(arguments.api_key, arguments.api_key_file, os.environ.get("INAZUMA_API_KEY"))
    security = Security(
        keys=keys,
        loopback=is_loopback(arguments.host),
        per_minute=_per_minute(arguments.rate_limit),
        allow_origins=tuple(_origin(origin) for origin in arguments.allow_origin),
    )
    if not keys and not security.loopback:
        raise UserError(
            f"--host {arguments.host}: others could reach this address; give --api-key, --api-key-file or "
            "INAZUMA_API_KEY, or stay on 127.0.0.1"
        )
    if not arguments.model.is_dir():
        raise UserError(f"{arguments.model}: no such model folder")
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: expected 0 to 65535")
    if arguments.grace < 0:
        raise UserError(f"--grace {arguments.grace}: seconds, not less than 0")
    _serve(arguments, security)
    return 0


def _serve(arguments: argparse.Namespace, security) -> None:
    import logging

    from rich.console import Console
    from rich.progress import Progress

    from inazuma.serve.app import Service
    from inazuma.serve.served import Served
    from inazuma.serve.server import Server, address, listen

    memory = arguments.memory and parse_size("--memory", arguments.memory)
    cache_memory = arguments.cache_memory and parse_size("--cache-memory", arguments.cache_memory)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("inazuma").setLevel(logging.INFO)
    listener = listen(arguments.host, arguments.port)
    where = address(listener)
    name = arguments.name or arguments.model.resolve().name
    console = Console(stderr=True)

    def load() -> Served:
        from inazuma.serve.loading import load_engine

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("loading", total=None)
            loaded = load_engine(
                arguments.model,
                context=arguments.context,
                quantize=arguments.quantize,
                memory=memory,
                cache_memory=cache_memory,
                cache_format=arguments.cache_format,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        for note in loaded.notes:
            print(note, flush=True)
        return Served.read(arguments.model, name, loaded.engine)

    server = Server(Service(log_prompts=arguments.log_prompts), security, grace=arguments.grace)
    try:
        server.serve_on(listener, load, lambda: print(f"{name} is served at {where}", flush=True))
    finally:
        console.show_cursor()  # the bar hides it, and a signal may come before its end


def _per_minute(limit: str | None) -> float | None:
    if limit is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/min)?", limit)
    if match is None or float(match[1]) <= 0:
        raise UserError(f"--rate-limit {limit}: expected requests a minute, such as 60/min")
    return float(match[1])


def _origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
        raise UserError(f"--allow-origin {origin}: expected an origin such as https://example.org, without a path")
    return origin
