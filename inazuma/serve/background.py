"""A server in a thread of this process, on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inazuma.serve.request import Engine
from inazuma.serve.security import Security
from inazuma.serve.served import Served
from inazuma.serve.server import Server, address, listen
from inazuma.serve.service import Service


@contextmanager
def serving(folder: Path, engine: Engine, key: str) -> Iterator[str]:
    """The address where a loaded model is served as long as the block lasts, to whoever has the key."""
    served = Served.read(folder, folder.resolve().name, engine)
    server = Server(Service(served), Security(keys=(key,), loopback=True), grace=0.0)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join(10)
