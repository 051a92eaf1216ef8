"""The process around the API: it answers while the model loads, and ends without cutting off who is being answered."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn

from inazuma.serve.app import Service, create_app
from inazuma.serve.security import Security
from inazuma.serve.served import Served


class Server(uvicorn.Server):
    """uvicorn, with the engine's end tied to its own.

    On SIGTERM or SIGINT it stops accepting, lets running requests go on for `grace` seconds, then has the engine
    cancel the rest, whose clients are told so. A second SIGINT ends the process at once.
    """

    def __init__(self, service: Service, security: Security, *, grace: float = 10.0):
        config = uvicorn.Config(
            create_app(service, security),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(grace) + 5,
            lifespan="off",
            http="h11",
        )
        super().__init__(config)
        self.service, self.grace = service, grace

    def serve_on(self, listener: socket.socket, load: Callable[[], Served], ready: Callable[[], None]) -> None:
        """Answers on `listener` until a signal; `load` runs beside it, and `ready` after it.

        Raises:
            Exception: what `load` raised, after the server has ended.
        """

        def work() -> None:
            try:
                self.service.served = load()
            except BaseException as error:
                self.service.failure = error
                self.should_exit = True
            else:
                if self.should_exit:  # the signal came first
                    self.service.served.engine.close(0)
                else:
                    ready()

        threading.Thread(target=work, name="load", daemon=True).start()
        self.run(sockets=[listener])
        if self.service.failure is not None:
            raise self.service.failure

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stopping = True
        if self.service.served is not None:
            engine = self.service.served.engine
            closing = threading.Thread(target=engine.close, args=(self.grace,), name="close", daemon=True)
            closing.start()
        await super().shutdown(sockets)
        if self.service.served is not None:
            closing.join(1)

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            # Whatever still computes is in native code on another thread: nothing softer would end it.
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(128 + signal.SIGINT)
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def address(listener: socket.socket) -> str:
    """`http://host:port`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
