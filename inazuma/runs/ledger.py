"""The ledger: which runs there were, the crashed and aborted ones included.

`ledger.jsonl` lies beside the run folders and is only ever appended to. Each line carries the SHA-256 of the line
before, so that a line changed or removed later breaks the chain. That its last lines were cut off shows twice: the
hash of the last line stands in `ledger.head` beside it, and each run's manifest has the hash of the line it followed.
Whoever rewrites all of these leaves no trace in the folder; the head, noted elsewhere (a commit, a paper), finds that.
A run that was killed stays visible: it has a `started` line and none that ends it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.files import atomic_file
from inazuma.runs.lines import decode_line, encode_line, whole_lines

LEDGER = "ledger.jsonl"
HEAD = "ledger.head"
_NO_LINE = "0" * 64


def append_ledger(folder: Path, *, run: str, identity: str, event: str, **facts: Any) -> None:
    """Adds one line to `folder`'s ledger, safe against other processes doing the same and against a power cut."""
    handle = os.open(folder / LEDGER, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        content = _read(handle)
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # What a process killed inside this function left of its line: it was never a line.
            os.ftruncate(handle, len(whole))
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        line = encode_line(
            {
                "previous": hashlib.sha256(last).hexdigest() if last else _NO_LINE,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "run": run,
                "id": identity,
                "event": event,
                **facts,
            }
        )
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, len(whole))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / LEDGER))
        os.fsync(handle)
        # A kill before this leaves the head at an earlier line, which is in the chain too.
        with atomic_file(folder / HEAD) as head:
            head.write(hashlib.sha256(line).hexdigest() + "\n")
    finally:
        os.close(handle)


def _read(handle: int) -> bytes:
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read()


def last_line(folder: Path) -> str:
    """The hash of the last line of `folder`'s ledger; 64 zeros where there is no line yet."""
    lines = whole_lines(folder / LEDGER) if (folder / LEDGER).is_file() else iter(())
    last = deque(lines, maxlen=1)
    return hashlib.sha256(last[0]).hexdigest() if last else _NO_LINE


def check_ledger(path: Path) -> list[dict[str, Any]]:
    """The lines of the ledger at `path`, whose chain holds up to the head that stands beside it.

    A `UserError` names the first line where it does not hold, or says that the last lines are missing.
    """
    entries = []
    hashes = [_NO_LINE]
    for number, line in enumerate(whole_lines(path), start=1):
        entry = decode_line(line, f"{path}:{number}")
        if entry.get("previous") != hashes[-1]:
            raise UserError(f"{path}:{number}: the chain breaks here; a line before it was changed or removed")
        entries.append(entry)
        hashes.append(hashlib.sha256(line).hexdigest())
    head = path.with_name(HEAD)
    if head.is_file() and head.read_text(encoding="utf-8").strip() not in hashes:
        raise UserError(f"{path}: its last lines are missing: {HEAD} names a line that is not there")
    return entries
