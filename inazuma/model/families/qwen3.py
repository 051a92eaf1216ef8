"""Qwen3: Llama with an RMSNorm on every query and key head."""

from inazuma.model.families.common import BASE, GROUPED, Family

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    always={"attention": "gqa", "rope_interleave": False, "use_qk_norm": True},
    fields=BASE | GROUPED,
)
