"""The plan: numbers of published models, and bytes that real models have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from inazuma.cli import main
from inazuma.model import ModelConfig
from inazuma.model.families import writer
from inazuma.model.plan import plan
from tests.model.tiny import build, tiny

AIR = ModelConfig(
    attention="gqa", vocab_size=151552, hidden_size=4096, intermediate_size=10944, moe_intermediate_size=1408,
    num_hidden_layers=46, num_attention_heads=96, num_key_value_heads=8, head_dim=128, partial_rotary_factor=0.5,
    qkv_bias=True, n_routed_experts=128, num_experts_per_tok=8, n_shared_experts=1, first_k_dense_replace=1,
    index_topk=None, max_position_embeddings=131072,
)  # fmt: skip
RECORD = Path(__file__).parents[2] / "benchmarks/results/streaming.json"


def test_air():
    air = plan(AIR)
    assert air.parameters / 1e9 == pytest.approx(106.85, abs=0.01)  # published: 106 B, of which 12 B active
    assert air.active_parameters / 1e9 == pytest.approx(13.4, abs=0.1)  # 12.8 without the embeddings
    assert air.cache_bytes_per_token() == 46 * 2 * 8 * 128 * 2
    assert air.experts == 45 * 128 and air.expert_parameters == 3 * 4096 * 1408
    assert air.weight_bytes() == 2 * air.parameters
    assert air.weight_bytes("int8") / air.parameters == pytest.approx(1.015, abs=0.01)
    assert air.weight_bytes("int4") / air.parameters == pytest.approx(0.64, abs=0.01)
    assert air.bytes_read_per_token(0.5) == 45 * 8 * air.expert_bytes() // 2
    assert air.bytes_read_per_token(1.0) == 0
    assert air.smallest_limit("int4") < air.smallest_limit("int8") < air.smallest_limit() < air.weight_bytes() / 10
    assert air.limit(1.0) > air.weight_bytes()


@pytest.mark.parametrize("attention", ["mla", "gqa"])
@pytest.mark.parametrize("experts", [None, 6])
def test_counts_are_those_of_the_model(attention, experts):
    config = tiny(attention=attention, n_routed_experts=experts, moe_intermediate_size=16)
    model = build(config, dtype=torch.bfloat16)
    needs = plan(config)
    assert needs.parameters == sum(x.numel() for x in model.parameters())
    routed = sum(x.nbytes for name, x in model.named_parameters() if ".mlp.experts." in name)
    assert needs.experts * needs.expert_bytes() == routed
    assert needs.resident_bytes() == 2 * needs.parameters - routed


def test_inspect_prints_it_from_a_configuration_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(writer(AIR).write(AIR)))
    for path in (tmp_path, tmp_path / "config.json"):
        assert main(["inspect", str(path), "--plan", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["parameters"] == plan(AIR).parameters
        assert found["weights"]["int4"]["smallest_limit"] == plan(AIR).smallest_limit("int4")
    assert main(["inspect", str(tmp_path), "--plan"]) == 0
    assert "106.85" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none"), "--plan"]) == 2


def test_the_plan_foresaw_the_memory_that_was_measured():
    record = json.loads(RECORD.read_text())
    assert record["plan"]["weight_bytes"] == pytest.approx(record["checkpoint_bytes"], rel=0.001)
    for result in record["streamed"]:
        assert result["same_tokens_as_whole"] and result["within_limit"]
        assert result["planned_limit"] == pytest.approx(result["peak"], rel=0.2)
