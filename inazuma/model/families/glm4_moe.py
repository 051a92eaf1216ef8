"""GLM-4.5, GLM-4.5-Air, 4.6 and 4.7: grouped queries, RoPE on a part of each head, a mixture of experts."""

from inazuma.model.families.common import BASE, EXPERTS, GROUPED, PREDICTION, SIGMOID, Family

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    always={"attention": "gqa", "rope_interleave": False, **SIGMOID},
    # transformers takes hidden_size // num_attention_heads for a missing head_dim, and Air's is not that.
    fields=BASE | GROUPED,
    optional=PREDICTION | {"attention_bias": ("qkv_bias", False), "use_qk_norm": ("use_qk_norm", False)},
    fixed=SIGMOID,
    experts=EXPERTS,
    dense_layers=1,
    partial_rotary_factor=0.5,
)
