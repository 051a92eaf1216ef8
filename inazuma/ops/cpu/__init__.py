"""The C++ engine for the CPU: `native/` through ctypes (`library.py`), as PyTorch operators (`operators.py`)."""

from inazuma.ops.cpu.library import MISSING
from inazuma.ops.cpu.operators import dense_attention, index_loss, obstacle, select_tokens, sparse_attention

__all__ = ["MISSING", "dense_attention", "index_loss", "obstacle", "select_tokens", "sparse_attention"]
