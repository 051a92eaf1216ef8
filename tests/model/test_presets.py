"""The presets are what they say: their sizes, who reads them, and what a token costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inazuma.errors import UserError
from inazuma.model import Cache, Transformer
from inazuma.model.families import writer
from inazuma.model.presets import PRESETS, preset, readers
from inazuma.model.size import cache_numbers, flops, parameters
from tests.model.tiny import tiny

FAMILY = {"air": "glm4_moe", "air-dsa": "inazuma", "dsa": "deepseek_v32"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_size_its_family_and_its_readers(name):
    line, size, *kinds = name.split("-")
    config = preset(name)
    wanted = {"nano": 15e6, "mini": 120e6, "small": 1e9}[size]
    found = parameters(config)
    if "served" not in kinds:
        assert 0.8 * wanted < found.total < 1.2 * wanted
    assert found.active < found.total
    sparse = line == "dsa" or "dsa" in kinds
    assert writer(config).model_type == FAMILY[f"{line}-dsa" if line == "air" and sparse else line]
    assert config.index_topk is None or config.index_n_heads >= 8
    if "served" in kinds:
        assert not any(width % 256 for width in (config.hidden_size, config.intermediate_size))
        assert ("vLLM" in readers(config)) == (writer(config).model_type != "inazuma")
    elif line == "dsa":
        # llama.cpp wants an index width in multiples of 64; so does `write_gguf`.
        assert readers(config) == (["transformers"] if size == "nano" else ["transformers", "llama.cpp"])


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="'air-huge' is not known; known are air-nano"):
        preset("air-huge")


@pytest.mark.parametrize("changes", [{}, {"attention": "gqa"}], ids=["mla", "gqa"])
def test_operations_are_those_that_pytorch_counts(changes):
    """A dense model's forward pass by PyTorch's own counter, which knows matrix products and dense attention."""
    config = tiny(index_topk=None, **changes)
    length = 64
    model = Transformer(config).init_weights(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, length, dtype=torch.long))
        # The operators are no matrix products of PyTorch's: their part is dense attention of the same shape.
        D = config.head_dim if config.attention == "gqa" else config.qk_nope_head_dim + config.qk_rope_head_dim
        V = config.head_dim if config.attention == "gqa" else config.v_head_dim
        q, v = (torch.zeros(config.num_attention_heads, length, width) for width in (D, V))
        for _ in range(config.num_hidden_layers):
            (q @ q.mT) @ v
    products = counter.get_total_flops()
    assert products == pytest.approx(length * flops(config, length), rel=0.02)  # norms' weights are no products


def test_sparse_operations_grow_by_the_indexer_alone():
    config = preset("dsa-mini")
    grown = flops(config, 16384) - flops(config, 8192)
    assert grown == 2 * 8192 * config.num_hidden_layers * config.index_n_heads * config.index_head_dim
    dense = dataclasses.replace(config, index_topk=None)
    assert flops(dense, 16384) - flops(dense, 8192) > 2 * grown


def test_the_cache_is_as_large_as_said():
    for changes in ({}, {"attention": "gqa"}, {"indexer_types": ("full", "shared", "full")}, {"index_topk": None}):
        config = tiny(**changes)
        cache = Cache(1, 10)
        Transformer(config).init_weights(0)(torch.zeros(1, 10, dtype=torch.long), cache=cache)
        assert sum(buffer.numel() for buffer in cache._buffers.values()) == 10 * cache_numbers(config)
