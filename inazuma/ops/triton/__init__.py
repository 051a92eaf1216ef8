"""The Triton engine for NVIDIA and AMD GPUs: kernels in `attention.py`, `selection.py`, `loss.py`, `pairs.py` and
`packs.py`, their tile sizes in `tiles.py`, and the operators that launch them in `operators.py` and `loss_operator.py`.

Triton is imported when an operator first runs, so a machine without it loses nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

MODULES = {
    "dense_attention": "operators",
    "index_loss": "loss_operator",
    "select_tokens": "operators",
    "sparse_attention": "operators",
}
"""Where each operator is."""
WIDEST = {torch.bfloat16: 576, torch.float16: 576, torch.float32: 128}
"""The widest head for each dtype whose tiles fit the smallest GPU (64 KiB of shared memory)."""
MOST_BATCH = 65_535
"""A grid's third side."""
MOST_ROWS = 1 << 30
"""Rows (of heads, keys or queries) are counted in int32, a tile past the last; where they begin, in int64."""


def installed() -> bool:
    """Whether there is a package triton to import."""
    return importlib.util.find_spec("triton") is not None


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why this engine cannot take the tensors; None where it can."""
    if not installed():
        return "the package triton is not installed"
    for x in tensors:
        if x is None:
            continue
        if not x.is_cuda and not (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
            return f"a tensor is on {x.device}, and Triton's interpreter is off (TRITON_INTERPRET=1)"
        if x.dtype == torch.bfloat16 and not x.is_cuda:
            return "Triton's interpreter has no products of bfloat16"  # it multiplies their bits as whole numbers
        if x.dtype not in WIDEST:
            return f"it has no {x.dtype}"
        if x.dim() == 4 and x.shape[-1] > WIDEST[x.dtype]:
            return f"heads of width {x.shape[-1]} in {x.dtype} do not fit a GPU's shared memory ({WIDEST[x.dtype]} do)"
        if x.numel() == 0:
            return "a tensor is empty"
        if x.dim() > 2 and (x.shape[0] > MOST_BATCH or math.prod(x.shape[:-1]) > MOST_ROWS):
            return f"{list(x.shape)} has more than {MOST_BATCH} batch entries or {MOST_ROWS} rows"
    return None


def __getattr__(name: str) -> Callable:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"inazuma.ops.triton.{MODULES[name]}"), name)
