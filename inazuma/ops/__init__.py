"""The operators of DeepSeek Sparse Attention.

`contract.py` has the letters, `reference.py` the definition, `dispatch.py` the operators and which engine answers.
"""

from inazuma.ops.dispatch import dense_attention, engine_for, index_loss, select_tokens, sparse_attention
from inazuma.ops.dsa import DSAOutput, Stage, dsa

__all__ = [
    "DSAOutput",
    "Stage",
    "dense_attention",
    "dsa",
    "engine_for",
    "index_loss",
    "select_tokens",
    "sparse_attention",
]
