"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inazuma.errors import UserError

PARTIAL = ".partial-"
"""Marks what a killed process may leave behind; anything of this name may be deleted."""


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[Any]:
    """Yields a handle; `path` holds the whole content afterwards, or what it held before if the block raised."""
    path = Path(path)
    temporary = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}-{path.name}")
    try:
        with open(temporary, mode, **({} if "b" in mode else {"encoding": "utf-8"})) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `path` when the block ends, and vanishes if the block raises.

    `path` must not exist: a folder cannot be replaced in one step, so callers choose a fresh name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            elif file.is_dir():
                sync_folder(file)
        sync_folder(temporary)
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as handle:
        handle.write(text + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or damaged one is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_fresh(path: Path, *, force: bool) -> None:
    """Raises `UserError` unless `path` is absent or an empty folder or, with `force`, a folder that inazuma wrote."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: exists and is not a folder; choose another name")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not force:
        raise UserError(f"{path}: exists and is not empty; choose another name or pass --force to replace it")
    if not any((path / name).exists() for name in ("manifest.json", "config.json", "config_inference.json")):
        raise UserError(f"{path}: was not written by inazuma, so --force does not replace it; choose another name")


def fresh_folder(path: Path, *, force: bool) -> Path:
    """Returns `path` as a folder that may be filled: absent or empty, or emptied here because of `force`."""
    path = Path(path)
    check_fresh(path, force=force)
    if path.is_dir() and any(path.iterdir()):
        shutil.rmtree(path)
    return path
