"""The shared library that `native/` is built into: where it lies, and its structures and functions (interface.h)."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


class Rows(ctypes.Structure):
    """A tensor `[B, rows, ...]` or `[B, rows, groups, width]` whose last dimension is contiguous."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("bfloat16", ctypes.c_int32),
    )


class Problem(ctypes.Structure):
    """Sizes (letters as in `contract.py`) and the keys that each query reads."""

    _fields_ = (
        *((letter, ctypes.c_int64) for letter in ("B", "T", "S", "H", "G", "Dk", "Dv", "I", "C", "K")),
        *((name, ctypes.c_void_p) for name in ("indices", "first", "last")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


class Linear(ctypes.Structure):
    """A linear layer with packed weights."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "scales", "bias")),
        *((letter, ctypes.c_int64) for letter in ("N", "K")),
        ("kind", ctypes.c_int32),
    )


INTERFACE = 2
"""`INAZUMA_INTERFACE` of `native/interface.h`."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float
DIRECT = {
    "linear": (_POINTER, _POINTER, _LONG, _POINTER, _INT),
    "rms_norm": (_POINTER, _POINTER, _POINTER, _FLOAT, _LONG, _LONG, _POINTER, _INT),
    "silu_mul": (_POINTER, _LONG, _LONG, _POINTER, _INT),
    "rotate": (
        *(_POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _INT),
        *(_POINTER, _POINTER, _LONG, _LONG, _INT, _INT),
    ),
    "paged_write": (_POINTER, _POINTER, _POINTER, _LONG, _INT),
    "paged_select": (_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER),
    "paged_attend": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG),
        *(_FLOAT, _POINTER, _LONG, _POINTER),
    ),
}
"""Arguments of the functions that are called by themselves (`packed.py`, `paged.py`), not as PyTorch operators."""


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or None and why it is not there."""
    # An editable install keeps built files apart from the sources: both folders are the package's. `make sanitize`
    # names a folder of its own.
    named = os.environ.get("INAZUMA_LIBRARY_FOLDER")
    for folder in [named] if named else sys.modules[__package__].__path__:
        for path in sorted(Path(folder).glob("libinazuma_cpu.*")):
            try:
                library = ctypes.CDLL(str(path))
                if library.inazuma_interface() != INTERFACE:
                    return None, f"{path.name} was built from other sources: install inazuma again"
                return _declare(library), None
            except (OSError, AttributeError) as error:  # the latter: built from much older sources
                return None, f"{path.name} does not load: {error}"
    return None, "it was not built: a C++17 compiler was missing when inazuma was installed"


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, problem = ctypes.c_void_p, ctypes.POINTER(Problem)
    library.inazuma_select.argtypes = [problem, Rows, Rows, pointer, pointer]
    library.inazuma_attention.argtypes = [problem, Rows, Rows, Rows, pointer, pointer, pointer]
    library.inazuma_attention_backward.argtypes = [problem, *[Rows] * 4, *[pointer] * 5]
    library.inazuma_index_loss.argtypes = [problem, Rows, Rows, pointer, Rows, Rows, *[pointer] * 5]
    library.inazuma_kernels.restype = ctypes.c_char_p
    library.inazuma_use_kernels.argtypes = [ctypes.c_char_p]
    for name in DIRECT:
        getattr(library, f"inazuma_{name}").argtypes = DIRECT[name]
    return library


LIBRARY, MISSING = _load()


def function(name: str, *, locked: bool) -> Callable[..., int] | None:
    """`inazuma_<name>` with the arguments of `DIRECT`, called with Python's lock held or not; None without the library.

    With the lock held no other thread of Python runs meanwhile, but none can keep the caller waiting for it either.
    """
    if LIBRARY is None:
        return None
    kind = ctypes.PyDLL if locked else ctypes.CDLL
    found = getattr(kind(LIBRARY._name, handle=LIBRARY._handle), f"inazuma_{name}")
    found.argtypes, found.restype = DIRECT[name], _INT
    return found


def rows(x: Tensor) -> Rows:
    """`x [B, rows, (groups,) width]` by its strides; its last dimension must be contiguous, and it must stay alive."""
    group = x.stride(2) if x.dim() == 4 else 0
    return Rows(x.data_ptr(), x.stride(0), x.stride(1), group, x.dtype == torch.bfloat16)


def call(function: str, problem: Problem, *arguments: Rows | int | None) -> None:
    """Runs `inazuma_<function>` on as many threads as PyTorch uses, without Python's lock.

    Raises:
        MemoryError: the library found no memory for its sums.
    """
    problem.threads = torch.get_num_threads()
    if getattr(LIBRARY, f"inazuma_{function}")(ctypes.byref(problem), *arguments):
        raise MemoryError(f"no memory for {function}")
