"""Qwen3's mixtures of experts: softmax routing, no shared experts, as a rule no dense layer."""

from collections.abc import Mapping
from typing import Any

from inazuma.model.families.common import BASE, GROUPED, Family, same


def _implied(hf: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes the number of experts under another name than Qwen."""
    return {"num_experts": hf["num_local_experts"]} if "num_local_experts" in hf else {}


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    always={
        "attention": "gqa",
        "rope_interleave": False,
        "use_qk_norm": True,
        "scoring_func": "softmax",
        "n_shared_experts": 0,
    },
    fields=BASE | GROUPED,
    fixed={"decoder_sparse_step": 1},
    experts=same("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    | {"num_experts": "n_routed_experts"},
    implied=_implied,
)
