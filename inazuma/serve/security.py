"""Who may ask what of the server, before any of it is parsed: the gate in front of the API.

It is the outermost layer but for CORS: a request that is refused here costs next to nothing. In order: the `Host`
header, the API key, the rate, the size of the body and its media type. It also logs each request, in one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inazuma.errors import UserError
from inazuma.serve.errors import APIError, error_of

log = logging.getLogger("inazuma.serve.access")

BODY_SECONDS = 60
"""In which a body must arrive."""

LINGER_BYTES, LINGER_SECONDS = 64 << 20, 10
"""Of a body that is refused, what is read and dropped before the answer: a socket that is closed over unread bytes
resets the connection, and many clients then never see why."""


@dataclass(frozen=True)
class Security:
    """What the gate lets through."""

    keys: tuple[str, ...] = ()
    """API keys; none: everyone who reaches the port may ask."""
    loopback: bool = True
    """The server is bound to a loopback address. Without keys the `Host` header must then be a loopback name: a web
    page whose name was rebound to 127.0.0.1 sends its own."""
    body_limit: int = 8 << 20
    """Bytes."""
    per_minute: float | None = None
    """Requests a minute for each key (without keys, for all together)."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of other origins that may read answers (CORS)."""


@dataclass
class Record:
    """What is logged and counted of a request; the handlers fill in the tokens."""

    owner: str = ""
    """A short hash of the key."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)


class Gate:
    """ASGI middleware; `scope["record"]` is the request's `Record`."""

    def __init__(self, app: ASGIApp, security: Security, open_paths: Collection[str] = ()):
        self.app, self.security = app, security
        self._open_paths = frozenset(open_paths)
        self._keys = [key.encode() for key in security.keys]
        self._buckets: dict[str, tuple[float, float]] = {}
        """Of each owner: requests left, and when that was."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = scope["record"] = Record()
        status, started = 500, False
        unread = scope["method"] in ("POST", "PUT", "PATCH")

        async def incoming() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def counted(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message.setdefault("headers", []).extend(_HEADERS)
            await send(message)

        try:
            self._check(scope, record)
            if unread:
                try:
                    async with asyncio.timeout(BODY_SECONDS):
                        body = await self._body(scope, incoming)
                except TimeoutError:
                    unread = False  # it had its time
                    raise APIError(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None
                await self.app(scope, _replay(body, receive), counted)
            else:
                await self.app(scope, receive, counted)
        except APIError as error:
            # Who expects a 100 has not begun to send.
            if unread and b"expect" not in dict(scope["headers"]):
                await _drop(incoming)
            await error.response()(scope, receive, counted)
        except _Gone:
            status = 499
        except Exception as error:
            response = error_of(error).response()
            if started:  # too late to say so; the connection is closed
                raise
            await response(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - record.started
            path = quote(scope["path"], safe="/:@~")
            tokens = f"{record.prompt_tokens}+{record.new_tokens}"
            log.info("%s %s %d %s tokens %.3f s", scope["method"], path, status, tokens, seconds)

    def _check(self, scope: Scope, record: Record) -> None:
        headers = dict(scope["headers"])
        security, path = self.security, scope["path"]
        if security.loopback and not self._keys and not is_loopback(_host(headers.get(b"host", b"").decode("latin-1"))):
            raise APIError(403, "the Host header is not a loopback address (protection against DNS rebinding)")
        if self._keys and path not in self._open_paths:
            record.owner = self._owner(headers.get(b"authorization", b""))
        if security.per_minute is not None and scope["method"] == "POST":
            self._take(record.owner)

    def _owner(self, authorization: bytes) -> str:
        scheme, _, given = authorization.partition(b" ")
        # All keys are compared, so that the time says nothing of which one was nearly right.
        right = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            message = "a valid API key is needed: Authorization: Bearer KEY"
            raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return hashlib.sha256(given.strip()).hexdigest()[:12]

    def _take(self, owner: str) -> None:
        """Takes one from the owner's bucket, which holds a minute's requests and fills evenly."""
        rate = self.security.per_minute
        now = time.monotonic()
        left, since = self._buckets.get(owner, (max(rate, 1.0), now))
        left = min(max(rate, 1.0), left + (now - since) * rate / 60)
        if left < 1:
            self._buckets[owner] = (left, now)
            wait = str(int((1 - left) * 60 / rate) + 1)
            raise APIError(
                429, f"more than {rate:g} requests a minute", code="rate_limit_exceeded", headers={"Retry-After": wait}
            )
        self._buckets[owner] = (left - 1, now)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers, limit = dict(scope["headers"]), self.security.body_limit
        too_large = APIError(413, f"the body is larger than {limit} bytes", headers={"Connection": "close"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large
            if not message.get("more_body"):
                break
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        # A form or plain text can be sent by any web page without asking first; JSON cannot.
        if body and kind != b"application/json":
            raise APIError(415, "the body must be JSON: Content-Type: application/json")
        _check_text(body)
        return bytes(body)


async def _drop(incoming: Receive) -> None:
    """Reads what a client still sends, within limits, and keeps nothing."""
    left = LINGER_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                message = await incoming()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


def _check_text(body: bytearray) -> None:
    """JSON can spell half a surrogate pair, which is no text: nothing behind the gate could write it."""
    if b"\\ud" in body or b"\\uD" in body:
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise APIError(400, "the body has half a surrogate pair in a text", code="invalid_json") from None
        except (ValueError, RecursionError):
            pass  # not JSON at all: whoever parses it says so


class _Gone(Exception):
    """The client left before it had sent all of its request."""


_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: the body that was read, then whatever the server says (a disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _host(header: str) -> str:
    """The host of a `Host` header, without its port."""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::\d*)?", header)
    return match[1].strip("[]") if match else ""


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(given: Sequence[str], file: Path | None, environment: str | None) -> tuple[str, ...]:
    """API keys from the command line, a file with one a line, and the environment (separated by commas).

    Raises:
        UserError: the file cannot be read, or a key is not printable ASCII.
    """
    keys = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {file}: cannot be read ({error})") from None
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise UserError(f"--api-key-file {file}: holds no key; write one a line")
    keys += [key.strip() for key in (environment or "").split(",") if key.strip()]
    for key in keys:
        if not re.fullmatch(r"[!-~]+", key):
            raise UserError("--api-key: a key is printable ASCII without spaces")
    return tuple(dict.fromkeys(keys))
