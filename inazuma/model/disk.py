"""Tensors of safetensors files, read past the page cache: what is read counts once, in the buffer it is read into.

A file is eight bytes of little-endian length, so much JSON that says where each tensor lies, and the tensors
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inazuma.errors import RunError, UserError

BLOCK = 4096
"""Direct reads begin and end at multiples of this, in the file and in memory."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class File:
    """An open file that is read directly (O_DIRECT) where its file system can, else through a page cache that is
    emptied behind the reading."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer`, which begins at a multiple of `BLOCK` in memory and is whole blocks, from `offset`, which is
        a multiple too; what would lie behind the file's end is left as it was. Threads may call it at once."""
        wanted, done = min(len(buffer), self.size - offset), 0
        while done < wanted:
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # Opened directly, but not read so: some network and layered file systems. The plain way, from here on.
                self._descriptor = os.open(self.path, os.O_RDONLY)
                continue
            if count == 0:
                raise RunError(f"{self.path}: ends at byte {offset + done}; it was longer when it was opened")
            done += count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: File
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the tensor itself."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def room(self) -> int:
        """Bytes of buffer that reading it takes: the blocks that hold it, wherever it begins."""
        return -(-(self.nbytes + BLOCK) // BLOCK) * BLOCK

    def read_into(self, buffer: mmap.mmap, start: int) -> Tensor:
        """Reads the tensor into `buffer`, where it begins at `start`, a multiple of `BLOCK`; returns it, a view.

        From `start` on `room` bytes are written to."""
        at = self._fetch(buffer, start)
        if at == start:
            return self._view(buffer, at)
        # Files align tensors to 8 bytes only; below 64 matrix products are slower, and round differently.
        tensor = self._view(buffer, start)
        ctypes.memmove(tensor.data_ptr(), tensor.data_ptr() + at - start, self.nbytes)
        return tensor

    def read(self) -> Tensor:
        """The tensor, in memory of its own; aligned as in the file, so as `safetensors` would map it."""
        buffer = mmap.mmap(-1, self.room)
        return self._view(buffer, self._fetch(buffer, 0))

    def _fetch(self, buffer: mmap.mmap, start: int) -> int:
        """Reads the blocks that hold the tensor; where in `buffer` it begins."""
        first = self.offset // BLOCK * BLOCK
        blocks = -(-(self.offset + self.nbytes - first) // BLOCK) * BLOCK
        self.file.read(memoryview(buffer)[start : start + blocks], first)
        return start + self.offset - first

    def _view(self, buffer: mmap.mmap, start: int) -> Tensor:
        count = math.prod(self.shape)
        return torch.frombuffer(buffer, dtype=self.dtype, count=count, offset=start).view(self.shape)


def entries(path: Path) -> dict[str, Entry]:
    """All tensors of a safetensors file, none of them read.

    Raises:
        UserError: the file is missing or damaged, or has tensors of a type that no model here computes in.
    """
    try:
        file = File(path)
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= file.size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {file.size}")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, facts in header.items():
            if facts["dtype"] not in DTYPES:
                raise UserError(f"{path}: {name} is {facts['dtype']}, which is not read from disk")
            begin, end = facts["data_offsets"]
            found[name] = Entry(file, 8 + length + begin, DTYPES[facts["dtype"]], tuple(facts["shape"]))
            if found[name].nbytes != end - begin or 8 + length + end > file.size:
                raise ValueError(f"{name} does not fit into it")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the checkpoint is incomplete") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({error})") from None
    return found
