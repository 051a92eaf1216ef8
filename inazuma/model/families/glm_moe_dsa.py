"""GLM-5: DeepSeek-V3.2 whose indexer rotates neighbours too, and whose layers may share a selection (GLM-5.2)."""

from inazuma.model.families.common import BASE, EXPERTS, INDEXER, LATENT, PREDICTION, SIGMOID, Family

ROPE = {"rope_interleave": True, "indexer_rope_interleave": True}

FAMILY = Family(
    model_type="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    always={"attention": "mla", **ROPE, **SIGMOID},
    fields=BASE | LATENT | INDEXER,
    optional=PREDICTION,
    fixed={**ROPE, **SIGMOID},
    experts=EXPERTS,
    dense_layers=3,
    shares_selections=True,
)
