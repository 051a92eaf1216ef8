"""What the families have in common: which fields of a config.json mean what, and what is refused.

A family is a description. It reads the fields it names, knows one value for the fields that it fixes, and refuses
whatever else there is: a field that nobody knows may change the result, so it is never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inazuma.config import from_dict
from inazuma.errors import UserError
from inazuma.model import config as config_fields
from inazuma.model.config import Llama3Scaling, ModelConfig, YarnScaling


def same(*names: str) -> dict[str, str]:
    """Fields of one name here and in config.json."""
    return {name: name for name in names}


BASE = same(
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
LATENT = same("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
GROUPED = same("num_key_value_heads", "head_dim")
INDEXER = same("index_topk", "index_n_heads", "index_head_dim")
EXPERTS = same(
    "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "n_group", "topk_group",
    "norm_topk_prob", "routed_scaling_factor",
)  # fmt: skip

PREDICTION = {"num_nextn_predict_layers": ("num_nextn_predict_layers", 0)}
"""For the `optional` fields of families with layers for multi-token prediction."""

OPTIONAL = {
    "initializer_range": ("initializer_range", 0.02),
    "tie_word_embeddings": ("tie_word_embeddings", False),
    "bos_token_id": ("bos_token_id", None),
    "eos_token_id": ("eos_token_id", None),
}
"""Fields that may be missing: config.json's name -> (`ModelConfig`'s, what that means)."""

FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "use_sliding_window": False,
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
"""Fields of which this model computes one value only."""

WITHOUT_EFFECT = {
    "model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache",
    "pad_token_id", "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "output_attentions",
    "output_hidden_states", "return_dict", "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
    "is_decoder", "sliding_window", "max_window_layers", "qk_head_dim", "ep_size", "quantization_config",
    "num_nextn_predict_layers", "num_mtp_layers", "num_local_experts",
}  # fmt: skip
"""Fields that change no logits, or that are read elsewhere: `sliding_window` without `use_sliding_window` is off, the
checkpoint reads `quantization_config`, a family without layers for multi-token prediction has none however many are
counted, `num_local_experts` is another name for what each family reads under its own."""

SIGMOID = {"scoring_func": "sigmoid"}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `model_type` of Hugging Face is read and written."""

    model_type: str
    architecture: str
    """The class's name, which vLLM, SGLang and llama.cpp choose the model by."""
    always: Mapping[str, Any]
    """What every model of the family has in `ModelConfig`."""
    fields: Mapping[str, str]
    """Fields that must be present: config.json's name -> `ModelConfig`'s."""
    optional: Mapping[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    """As `OPTIONAL`, which every family has."""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda hf: {}
    """What missing fields mean where it follows from others."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """As `FIXED`, which every family has, and written as they are."""
    experts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Fields of the mixture of experts, which must be there if any layer has one."""
    dense_layers: int = 0
    """What a missing `first_k_dense_replace` means."""
    partial_rotary_factor: float = 1.0
    """What a missing `partial_rotary_factor` means."""
    shares_selections: bool = False
    """Whether layers may use the selection of an earlier one (`indexer_types`)."""

    @property
    def is_latent(self) -> bool:
        """Whether its attention is multi-head latent attention."""
        return self.always["attention"] == "mla"

    @property
    def is_sparse(self) -> bool:
        """Whether its layers have indexers."""
        return "index_topk" in self.fields

    # ---------------------------------------------------------------------------------------------------------- read

    def read(self, hf: Mapping[str, Any]) -> ModelConfig:
        """The shape that a config.json describes.

        Raises:
            UserError: a field is missing, of a wrong kind, or says what this model does not compute; it is named.
        """
        hf = {name: value for name, value in hf.items() if value is not None}
        if "num_mtp_layers" in hf:  # transformers' name
            hf.setdefault("num_nextn_predict_layers", hf["num_mtp_layers"])
        if "auto_map" in hf:
            raise UserError("config.json: auto_map: code that comes with a checkpoint is never run")
        optional = {**OPTIONAL, **self.optional}
        fixed = {name: only for name, only in {**FIXED, **self.fixed}.items() if name not in optional}
        for name, only in fixed.items():
            if hf.get(name, only) != only:
                raise UserError(f"config.json: {name} = {hf[name]!r} is not supported, only {only!r}")
        values = {ours: _present(hf, name) for name, ours in BASE.items()}
        for name in ("num_hidden_layers", "num_nextn_predict_layers"):
            if not isinstance(hf.get(name, 0), int):
                raise UserError(f"config.json: {name}: expected a whole number, got {hf[name]!r}")
        hf = {**self.implied(hf), **hf}
        values |= {ours: _present(hf, name) for name, ours in self.fields.items()}
        values |= {ours: hf.get(name, default) for name, (ours, default) in optional.items()}
        scaling, known = self._read_rope(hf, values)
        known |= self._read_experts(hf, values) | self._read_layers(hf, values)
        for name in sorted(hf.keys() - known - {*fixed, *self.fields, *optional} - WITHOUT_EFFECT):
            raise UserError(
                f"config.json: {name} = {hf[name]!r} is not known for {self.model_type} and may change what the model "
                "computes; remove it if it does not"
            )
        if not self.is_sparse:
            values["index_topk"] = None
        config = from_dict(ModelConfig, {**values, **self.always}, where="config.json")
        return dataclasses.replace(config, rope_scaling=scaling)

    def _read_rope(
        self, hf: Mapping[str, Any], values: dict[str, Any]
    ) -> tuple[YarnScaling | Llama3Scaling | None, set[str]]:
        """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before)."""
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise UserError(f"config.json: rope_parameters: expected a mapping, got {rope!r}")
        rope = {name: value for name, value in rope.items() if value is not None}
        values["rope_theta"] = rope.pop("rope_theta", hf.get("rope_theta", 10000.0))
        default = hf.get("partial_rotary_factor", self.partial_rotary_factor)
        values["partial_rotary_factor"] = rope.pop("partial_rotary_factor", default)
        older = rope.pop("type", "default")
        kind = rope.pop("rope_type", older)
        known = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"}
        where = "config.json: rope_parameters"
        if kind == "llama3":
            return from_dict(Llama3Scaling, rope, where=where), known
        if kind == "yarn":
            return from_dict(YarnScaling, self._read_yarn(rope), where=where), known
        if kind != "default":
            raise UserError(f"config.json: rope type {kind!r} is not supported, only 'default', 'yarn' and 'llama3'")
        if rope:
            raise UserError(f"{where}: {min(rope)} is not known for rope type 'default'")
        return None, known

    def _read_yarn(self, rope: dict[str, Any]) -> dict[str, Any]:
        both = bool(rope.get("mscale")) and bool(rope.get("mscale_all_dim"))
        if self.is_latent and not both:
            raise UserError("config.json: YaRN without mscale and mscale_all_dim is not supported; DeepSeek sets both")
        if not self.is_latent and (rope.pop("mscale", None) or rope.pop("mscale_all_dim", None)):
            raise UserError(f"config.json: YaRN with mscale or mscale_all_dim is not supported for {self.model_type}")
        # Elsewhere cos and sin are stretched by 0.1 ln(factor) + 1, and the softmax is as it was.
        return rope if self.is_latent else rope | {"mscale": 1.0, "mscale_all_dim": 0.0}

    def _read_experts(self, hf: Mapping[str, Any], values: dict[str, Any]) -> set[str]:
        if not self.experts:
            return set()
        layers = hf["num_hidden_layers"]
        total = layers + values.get("num_nextn_predict_layers", 0)
        dense = min(hf.get("first_k_dense_replace", self.dense_layers), total)
        if (types := hf.get("mlp_layer_types")) is not None:
            first = types.index("sparse") if "sparse" in types else layers
            if "first_k_dense_replace" in hf and first != min(dense, layers):
                raise UserError("config.json: mlp_layer_types: first_k_dense_replace says something else")
            dense = dense if "first_k_dense_replace" in hf else first
            if types != ["dense"] * first + ["sparse"] * (layers - first):
                raise UserError(
                    "config.json: mlp_layer_types: only dense layers first and sparse ones then are supported"
                )
        if (first := hf.get("mlp_only_layers")) is not None:
            dense = len(first)
            if sorted(first) != list(range(dense)):
                raise UserError("config.json: mlp_only_layers: only the first layers may be dense")
        behind = _mlp_layer_types(dense, layers, total)
        if total > layers and hf.get("mtp_mlp_layer_types", behind) != behind:
            raise UserError(f"config.json: mtp_mlp_layer_types: only {behind} is supported after these layers")
        if dense < total:
            values |= {ours: _present(hf, name) for name, ours in self.experts.items()}
            values["first_k_dense_replace"] = dense
        known = {"first_k_dense_replace", "mlp_layer_types", "mtp_mlp_layer_types", "mlp_only_layers"}
        return known | {*self.experts}

    def _read_layers(self, hf: Mapping[str, Any], values: dict[str, Any]) -> set[str]:
        """What each layer's attention is."""
        known = {"layer_types"}
        only = "indexed_attention" if self.is_sparse else "full_attention"
        for name in hf.get("layer_types", ()):
            if name != only:
                raise UserError(f"config.json: layer_types: {name!r} is not supported, only {only!r}")
        if self.is_latent:
            heads = hf["num_attention_heads"]
            if isinstance(heads, int) and hf.get("num_key_value_heads", heads) != heads:
                raise UserError("config.json: num_key_value_heads: latent attention has as many as query heads")
            known |= {"num_key_value_heads", "head_dim"}
        if not self.is_sparse:
            return known
        types, field = _indexer_types(hf)
        if "shared" in types:
            if not self.shares_selections:
                raise UserError(
                    f"config.json: {field}: {self.model_type} has no shared selections, they would be ignored"
                )
            values["indexer_types"] = types
        return known | {"indexer_types", "index_topk_freq", "index_topk_pattern", "index_skip_topk_offset"}

    # --------------------------------------------------------------------------------------------------------- write

    def writes(self, config: ModelConfig) -> bool:
        """Whether a config.json of this family can say all that `config` says."""
        of_experts = () if config.n_routed_experts else config_fields.EXPERTS
        of_indexer = () if self.is_sparse else config_fields.INDEXER
        for name, value in self.always.items():
            if name not in (*of_experts, *of_indexer) and getattr(config, name) != value:
                return False
        if self.is_sparse != (config.index_topk is not None):
            return False
        try:
            return self.read(self.write(config)) == dataclasses.replace(config, model_type=None)
        except UserError:
            return False

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """config.json, with the fields of transformers 5 and those that older or other readers ask for."""
        layers = config.num_hidden_layers
        hf: dict[str, Any] = {"model_type": self.model_type, "architectures": [self.architecture]}
        hf |= {"attention_bias": False}
        hf |= {name: getattr(config, ours) for name, ours in {**BASE, **self.fields}.items()}
        hf |= {name: getattr(config, ours) for name, (ours, _) in {**OPTIONAL, **self.optional}.items()}
        hf |= {"hidden_act": "silu", "attention_dropout": 0.0} | dict(self.fixed)
        if isinstance(config.eos_token_id, tuple):
            hf["eos_token_id"] = list(config.eos_token_id)
        if self.is_latent:
            hf["num_key_value_heads"] = config.num_attention_heads
        if self.shares_selections:
            hf["indexer_types"] = list(config.indexer_types or ["full"] * layers)
        return hf | self._write_rope(config) | self._write_experts(config)

    def _write_rope(self, config: ModelConfig) -> dict[str, Any]:
        rope, older = {"rope_type": "default"}, None
        if config.rope_scaling is not None:
            values = {n: x for n, x in vars(config.rope_scaling).items() if self.is_latent or "mscale" not in n}
            rope = {"rope_type": config.rope_scaling.rope_type, **values}
            older = {"type": rope["rope_type"], **rope}
        shared = {"rope_theta": config.rope_theta}
        if self.partial_rotary_factor != 1.0:
            shared["partial_rotary_factor"] = config.partial_rotary_factor
        return {"rope_parameters": {**rope, **shared}, **shared, "rope_scaling": older}

    def _write_experts(self, config: ModelConfig) -> dict[str, Any]:
        if not self.experts:
            return {}
        # Without a mixture its fields keep the smallest values that readers accept.
        layers, dense, values = config.num_hidden_layers, config.first_k_dense_replace, config
        total = layers + config.num_nextn_predict_layers
        if config.n_routed_experts is None:
            dense, values = total, dataclasses.replace(config, n_routed_experts=2, num_experts_per_tok=1)
        hf = {name: getattr(values, ours) for name, ours in self.experts.items()}
        if "decoder_sparse_step" in self.fixed:
            return hf | {"mlp_only_layers": list(range(dense))}
        hf |= {"topk_method": "noaux_tc", "moe_layer_freq": 1, "first_k_dense_replace": dense}
        hf["mlp_layer_types"] = _mlp_layer_types(dense, 0, layers)
        if total > layers:
            hf["mtp_mlp_layer_types"] = _mlp_layer_types(dense, layers, total)
        return hf


def _mlp_layer_types(dense: int, start: int, stop: int) -> list[str]:
    """transformers' words for layers `start` to `stop - 1`, when the first `dense` of all have no experts."""
    return ["dense" if layer < dense else "sparse" for layer in range(start, stop)]


def _present(hf: Mapping[str, Any], name: str) -> Any:
    if name not in hf:
        raise UserError(f"config.json: {name} is missing")
    return hf[name]


def _indexer_types(hf: Mapping[str, Any]) -> tuple[list[str], str]:
    """A layer each, and the field that says so: a list, a pattern such as "FSSF", or a frequency and an offset."""
    if "indexer_types" in hf:
        return list(hf["indexer_types"]), "indexer_types"
    if (pattern := hf.get("index_topk_pattern")) is not None:
        letters = {"F": "full", "S": "shared", "full": "full", "shared": "shared"}
        if any(letter not in letters for letter in pattern):
            raise UserError(f"config.json: index_topk_pattern: expected F and S, got {pattern!r}")
        return [letters[letter] for letter in pattern], "index_topk_pattern"
    every, offset = max(hf.get("index_topk_freq", 1), 1), hf.get("index_skip_topk_offset", 2)
    layers = range(hf["num_hidden_layers"])
    return ["full" if max(layer - offset + 1, 0) % every == 0 else "shared" for layer in layers], "index_topk_freq"
