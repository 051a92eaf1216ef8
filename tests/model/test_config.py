"""Shapes that cannot be are refused in one line that names the field."""

from __future__ import annotations

import pytest

from inazuma.config import from_dict, to_dict
from inazuma.errors import UserError
from inazuma.model import ModelConfig
from tests.model.tiny import YARN, tiny

GQA = {"attention": "gqa"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size: must be at least 1, got 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be at least 1"),
        ({"index_topk": 0}, "index_topk: must be at least 1, got 0"),
        ({"index_n_heads": -1}, "index_n_heads: must be at least 1"),
        (GQA | {"num_key_value_heads": 3}, "num_attention_heads: 4 .* num_key_value_heads = 3"),
        (GQA | {"num_key_value_heads": 8}, "num_attention_heads: 4 .* num_key_value_heads = 8"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim: .* even, got 7"),
        (GQA | {"head_dim": 15}, "head_dim: .* even, got 15"),
        ({"index_head_dim": 6}, r"index_head_dim: .* rope part \(8\), got 6"),
        (GQA | {"index_head_dim": 7}, "index_head_dim: .* even.* got 7"),
        ({"index_topk": 129}, "index_topk: 129 is larger than max_position_embeddings = 128"),
        ({"indexer_types": ("full",)}, "indexer_types: has 1 entries for 3 layers"),
        ({"indexer_types": ("shared", "full", "full")}, "indexer_types: the first layer"),
    ],
)
def test_a_shape_that_cannot_be_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_theta": -1e4}, "rope_theta"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"initializer_range": -0.02}, "initializer_range"),
        ({"rope_scaling": {"factor": 0.0, "original_max_position_embeddings": 32}}, "factor"),
        ({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 0.0}}, "beta_fast"),
    ],
)
def test_a_number_that_cannot_be_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        from_dict(ModelConfig, to_dict(tiny()) | changes, where="model.yaml")
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_named_with_its_nearest():
    with pytest.raises(UserError, match=r"model\.yaml: indx_topk: unknown key.*index_topk"):
        from_dict(ModelConfig, {"vocab_size": 9, "indx_topk": 3}, where="model.yaml")


@pytest.mark.parametrize(
    "config",
    [
        tiny(),
        tiny(index_topk=None),
        tiny(rope_scaling=YARN),
        tiny(attention="gqa", indexer_types=("full", "shared", "shared")),
        # At the bounds: k as large as the context, an index width that is all RoPE or narrower than a whole head.
        tiny(index_topk=128),
        tiny(index_head_dim=8),
        tiny(attention="gqa", index_head_dim=10),
        tiny(attention="gqa", head_dim=2, num_key_value_heads=4),
    ],
)
def test_a_good_one_survives_its_plain_values(config):
    assert from_dict(ModelConfig, to_dict(config), where="model.yaml") == config


def test_what_is_rotated_and_who_indexes():
    latent = tiny(indexer_types=("full", "shared", "full"))
    assert (latent.rope_head_dim, latent.index_rope_head_dim) == (8, 8)
    assert [latent.has_indexer(layer) for layer in range(3)] == [True, False, True]
    assert (tiny(**GQA).rope_head_dim, tiny(**GQA).index_rope_head_dim) == (16, 16)
    assert tiny(**GQA, index_head_dim=10).index_rope_head_dim == 10
    assert not any(tiny(index_topk=None).has_indexer(layer) for layer in range(3))
