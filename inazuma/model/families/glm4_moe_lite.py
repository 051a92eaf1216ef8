"""GLM-4.7-Flash: latent attention and a mixture of experts; the model of DeepSeek-V3 under another name."""

from inazuma.model.families.common import BASE, EXPERTS, LATENT, PREDICTION, SIGMOID, Family

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    always={"attention": "mla", "rope_interleave": True, **SIGMOID},
    fields=BASE | LATENT,
    optional=PREDICTION,
    fixed={"rope_interleave": True, **SIGMOID},
    experts=EXPERTS,
    dense_layers=1,
)
