"""`inazuma chat MODEL` or `inazuma chat URL`"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inazuma.cli.generate import parse_size
from inazuma.errors import UserError, needs_extra

SUMMARY = "talk with a model in the terminal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder, or the address of a server: http://…")
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    for name, kind in (("temperature", float), ("top-p", float), ("max-tokens", int), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, metavar="X" if kind is float else "N", help="of the answers")
    parser.add_argument("--context", type=int, metavar="N", help="tokens of the conversation (default: the model's)")
    parser.add_argument("--quantize", choices=("auto", "none", "int8", "int4"), default="auto", help="(default: auto)")
    parser.add_argument("--memory", metavar="SIZE", help="leave a mixture's experts on disk and stay within, as 8GB")
    parser.add_argument("--api-key", metavar="KEY", help="of the server; or INAZUMA_API_KEY")
    parser.add_argument("--name", metavar="NAME", help="which of the server's models (default: the first)")


def run(arguments: argparse.Namespace) -> int:
    needs_extra("serve", "fastapi", "uvicorn", "llguidance", "httpx2")
    from rich.console import Console

    from inazuma.serve.chat import Conversation, models
    from inazuma.serve.terminal import Terminal, pipe

    console = Console(highlight=False)
    with _server(arguments) as (url, key):
        found = models(url, key)
        names = [model["id"] for model in found]
        if arguments.name is not None and arguments.name not in names:
            raise UserError(f"--name {arguments.name}: {url} has {', '.join(names)}")
        model = next(model for model in found if arguments.name in (None, model["id"]))
        conversation = Conversation(url, model["id"], key)
        for name in ("temperature", "top_p", "max_tokens", "seed"):
            if getattr(arguments, name) is not None:
                conversation.settings[name] = getattr(arguments, name)
        if arguments.system:
            conversation.set_system(arguments.system)
        if sys.stdin.isatty() and sys.stdout.isatty():
            Terminal(conversation, model.get("max_model_len"), console).run()
        else:
            pipe(conversation)
    return 0


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """The address and key of the server: one that is there, or our own on a free port, as long as the chat lasts."""
    key = arguments.api_key or os.environ.get("INAZUMA_API_KEY")
    if arguments.model.startswith(("http://", "https://")):
        yield arguments.model.rstrip("/").removesuffix("/v1"), key
        return
    folder = Path(arguments.model)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    from rich.console import Console
    from rich.progress import Progress

    from inazuma.serve.background import serving
    from inazuma.serve.loading import load_engine

    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("loading")
        loaded = load_engine(
            folder,
            context=arguments.context,
            quantize=arguments.quantize,
            memory=arguments.memory and parse_size("--memory", arguments.memory),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if sys.stdout.isatty():
        for note in loaded.notes:
            console.print(f"[dim]{note}[/dim]", highlight=False)
    key = secrets.token_urlsafe(16)  # nobody else on this machine has a part in the conversation
    with serving(folder, loaded.engine, key) as url:
        yield url, key
