"""DeepSeek-V3 and V3.1: the model of V3.2 without indexers."""

from inazuma.model.families.common import BASE, EXPERTS, LATENT, PREDICTION, SIGMOID, Family

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    always={"attention": "mla", "rope_interleave": True, **SIGMOID},
    fields=BASE | LATENT,
    optional=PREDICTION,
    fixed={"rope_interleave": True, **SIGMOID},
    experts=EXPERTS,
    dense_layers=3,
)
