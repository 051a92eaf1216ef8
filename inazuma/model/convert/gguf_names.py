"""What llama.cpp calls the architectures and the tensors; a layer's tensors are `blk.N.` and a name from here."""

from __future__ import annotations

ARCHITECTURES = {
    "deepseek_v32": "deepseek32",
    "glm_moe_dsa": "glm-dsa",
    "glm4_moe": "glm4moe",
    "llama": "llama",
}
"""`model_type` -> `general.architecture`."""

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

_MODULES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
    "mlp.gate": "ffn_gate_inp",
    **{f"mlp.{side}_proj": f"ffn_{side}" for side in ("gate", "up", "down")},
    **{f"mlp.shared_experts.{side}_proj": f"ffn_{side}_shexp" for side in ("gate", "up", "down")},
}

IN_LAYER = {
    **{f"{module}.{part}": f"{name}.{part}" for module, name in _MODULES.items() for part in ("weight", "bias")},
    # Here as there all experts of a layer are one tensor.
    **{f"mlp.experts.{side}_proj": f"ffn_{side}_exps.weight" for side in ("gate", "up", "down")},
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
"""A tensor's name in a layer of `Transformer` -> its name in a block. `self_attn.kv_b_proj` becomes two tensors."""

RENAMED = {"glm4moe": {"post_attention_layernorm.weight": "post_attention_norm.weight"}}
"""Where an architecture has a name of its own."""
