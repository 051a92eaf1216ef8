"""DeepSeek-V3.2: latent attention, a lightning indexer in every layer, a mixture of experts after the first layers."""

from inazuma.model.families.common import BASE, EXPERTS, INDEXER, LATENT, PREDICTION, SIGMOID, Family

ROPE = {"rope_interleave": True, "indexer_rope_interleave": False}

FAMILY = Family(
    model_type="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    always={"attention": "mla", **ROPE, **SIGMOID},
    fields=BASE | LATENT | INDEXER,
    optional=PREDICTION,
    fixed={**ROPE, **SIGMOID, "scale_fmt": "ue8m0"},
    experts=EXPERTS,
    dense_layers=3,
)
