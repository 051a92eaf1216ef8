"""Llama 2 and 3 and what has their shape (SmolLM2, for one): grouped queries, dense."""

from collections.abc import Mapping
from typing import Any

from inazuma.model.families.common import BASE, GROUPED, Family


def _implied(hf: Mapping[str, Any]) -> dict[str, Any]:
    heads = hf["num_attention_heads"]
    return {"num_key_value_heads": heads, "head_dim": hf["hidden_size"] // heads}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    always={"attention": "gqa", "rope_interleave": False},
    fields=BASE | GROUPED,
    implied=_implied,
)
