"""The layout of DeepSeek's inference code, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inazuma
from inazuma import cli
from inazuma.errors import UserError
from inazuma.model.convert import convert
from inazuma.model.convert.deepseek import CONFIG, WEIGHTS
from tests.model.convert.models import model_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A DeepSeek-V3.2 in bfloat16, whose initializer_range is the default: ModelArgs has none."""
    (tmp_path / "tokenizer").mkdir()
    kind = "deepseek_v32-groups-yarn"
    model_of(kind, tmp_path / "tokenizer", torch.bfloat16, initializer_range=0.02).save(tmp_path / "model")
    return tmp_path / "model"


def test_a_round_trip_is_bit_exact(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "theirs", to="deepseek")
    convert(tmp_path / "theirs", tmp_path / "again", to="hf")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_folder_is_replaced_only_when_asked(saved: Path, tmp_path: Path, capsys) -> None:
    command = ["convert", str(saved), str(tmp_path / "theirs"), "--to", "deepseek"]
    assert cli.main(command) == 0
    before = (tmp_path / "theirs" / WEIGHTS).read_bytes()
    assert cli.main(command) == 2 and "--force" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0
    assert (tmp_path / "theirs" / WEIGHTS).read_bytes() == before


def test_names_and_fields_are_those_of_the_published_code(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "theirs", to="deepseek")
    weights = load_file(tmp_path / "theirs" / WEIGHTS)
    attention = ("wq_a", "q_norm", "wq_b", "wkv_a", "kv_norm", "wkv_b", "wo", "indexer.wq_b", "indexer.wk")
    attention += ("indexer.k_norm", "indexer.weights_proj")
    expected = {"embed.weight", "norm.weight", "head.weight"}
    for layer in range(3):
        expected |= {f"layers.{layer}.{norm}.weight" for norm in ("attn_norm", "ffn_norm")}
        expected |= {f"layers.{layer}.attn.{name}.weight" for name in attention}
        expected.add(f"layers.{layer}.attn.indexer.k_norm.bias")
        experts = [""] if layer == 0 else [*(f"experts.{n}." for n in range(8)), "shared_experts."]
        expected |= {f"layers.{layer}.ffn.{expert}w{n}.weight" for expert in experts for n in (1, 2, 3)}
        expected |= {f"layers.{layer}.ffn.gate.{part}" for part in ("weight", "bias") if layer}
    assert weights.keys() == expected
    hf = load_file(saved / "model.safetensors")
    # `Expert` computes w2(silu(w1(x)) * w3(x)).
    for theirs, ours in {
        "layers.1.ffn.experts.5.w1.weight": "model.layers.1.mlp.experts.5.gate_proj.weight",
        "layers.1.ffn.experts.5.w2.weight": "model.layers.1.mlp.experts.5.down_proj.weight",
        "layers.1.ffn.experts.5.w3.weight": "model.layers.1.mlp.experts.5.up_proj.weight",
        "layers.0.ffn.w3.weight": "model.layers.0.mlp.up_proj.weight",
        "layers.2.ffn.gate.bias": "model.layers.2.mlp.gate.e_score_correction_bias",
        "layers.2.attn.q_norm.weight": "model.layers.2.self_attn.q_a_layernorm.weight",
        "layers.2.attn_norm.weight": "model.layers.2.input_layernorm.weight",
        "layers.2.attn.indexer.wq_b.weight": "model.layers.2.self_attn.indexer.wq_b.weight",
        "head.weight": "lm_head.weight",
    }.items():
        assert torch.equal(weights[theirs], hf[ours]), theirs
    arguments = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    assert arguments["dim"] == 64 and arguments["n_dense_layers"] == 1 and arguments["n_limited_groups"] == 2
    assert arguments["rope_factor"] == 4.0 and arguments["original_seq_len"] == 64 and arguments["dtype"] == "bf16"


def test_fp8_weights_become_bfloat16(saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "theirs", to="deepseek")
    file = tmp_path / "theirs" / WEIGHTS
    weights = load_file(file)
    x = weights["layers.0.attn.wo.weight"]
    weights["layers.0.attn.wo.weight"] = (x.float() * 16).to(torch.float8_e4m3fn)
    weights["layers.0.attn.wo.scale"] = torch.full((1, 1), 1 / 16)
    save_file(weights, file)
    convert(tmp_path / "theirs", tmp_path / "again", to="hf")
    read = inazuma.load(tmp_path / "again").model.layers[0].self_attn.o_proj.weight
    assert read.dtype == torch.bfloat16 and (read - x).abs().max() <= x.abs().max() / 16


def test_what_the_layout_cannot_hold_is_refused(saved: Path, tmp_path: Path, capsys) -> None:
    convert(saved, tmp_path / "wide", to="hf", dtype=torch.float32)
    assert cli.main(["convert", str(tmp_path / "wide"), str(tmp_path / "new"), "--to", "deepseek"]) == 2
    assert "--dtype bfloat16" in capsys.readouterr().err
    (tmp_path / "t").mkdir()
    for kind, changes, said in (
        ("llama", {}, "this one is llama"),
        ("deepseek_v32", {"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ("deepseek_v32", {"norm_topk_prob": False}, "norm_topk_prob"),
    ):
        model_of(kind, tmp_path / "t", torch.bfloat16, **changes).save(tmp_path / "model2", force=True)
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "model2", tmp_path / "new", to="deepseek")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / WEIGHTS).rename(folder / "model0-mp2.safetensors"), "model-parallel 1"),
        (lambda folder: (folder / CONFIG).unlink(), "found 0"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "damaged"),
        (lambda folder: (folder / CONFIG).write_text('{"n_layers": 3, "beta": 1}'), "beta is not known"),
    ],
)
def test_damage_is_named(damage, said: str, saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "theirs", to="deepseek")
    damage(tmp_path / "theirs")
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "theirs", tmp_path / "new", to="hf")
