"""inazuma: train Transformers with DeepSeek Sparse Attention, from a CPU to any GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from inazuma.model.checkpoint import load


def __getattr__(name: str):
    # PyTorch takes seconds to import: `import inazuma` and `inazuma --help` must not wait for it.
    if name == "load":
        from inazuma.model.checkpoint import load

        return load
    raise AttributeError(f"module 'inazuma' has no attribute {name!r}")
