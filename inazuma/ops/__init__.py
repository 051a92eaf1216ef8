"""The operators of DeepSeek Sparse Attention. `contract.py` has the letters, `reference.py` the definition."""

from inazuma.ops.dsa import DSAOutput, Stage, dsa
from inazuma.ops.reference import dense_attention, index_loss, select_tokens, sparse_attention

__all__ = ["DSAOutput", "Stage", "dense_attention", "dsa", "index_loss", "select_tokens", "sparse_attention"]
