"""Checkpoints: bit-exact round trips, and one clear line for everything that is not a checkpoint."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inazuma
from inazuma.errors import UserError
from inazuma.model import checkpoint
from tests.model.tiny import YARN, build, is_indexer, tiny, tokens

KINDS = {
    "deepseek_v32": tiny(),
    "deepseek_v32-yarn-tied": tiny(rope_scaling=YARN, tie_word_embeddings=True, bos_token_id=None, eos_token_id=5),
    "deepseek_v3": tiny(index_topk=None),
    "inazuma-gqa": tiny(attention="gqa", rope_scaling=YARN),
    "llama-tied": tiny(attention="gqa", index_topk=None, rope_interleave=False, tie_word_embeddings=True),
    "glm_moe_dsa-shared": tiny(indexer_types=("full", "shared", "full"), indexer_rope_interleave=True),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def saved(tmp_path) -> Path:
    build(tiny(), dtype=torch.float32).save(tmp_path / "model")
    return tmp_path / "model"


# ----------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_a_round_trip_is_bit_exact(name, dtype, tmp_path):
    model = build(KINDS[name], dtype=dtype)
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == name.split("-")[0]
    loaded = inazuma.load(tmp_path / "model")
    assert loaded.config == model.config and not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype == dtype and torch.equal(after[key], value), key
    assert torch.equal(loaded(tokens(2, 30)), model(tokens(2, 30)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "model")


def test_load_can_change_the_dtype(saved):
    weights = inazuma.load(saved, dtype=torch.bfloat16).state_dict()
    assert {x.dtype for x in weights.values()} == {torch.bfloat16}
    assert inazuma.load(str(saved)).model.norm.weight.dtype == torch.float32


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    model = build(tiny(tie_word_embeddings=True), dtype=torch.float32)
    model.save(tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    assert "lm_head.weight" not in load_file(file) and "model.embed_tokens.weight" in load_file(file)
    # Some writers keep both names.
    weights = load_file(file)
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    for loaded in (inazuma.load(tmp_path / "model"), inazuma.load(tmp_path / "model", dtype=torch.float64)):
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_checkpoint_in_shards_is_one_model(saved):
    weights = load_file(saved / "model.safetensors")
    whole = inazuma.load(saved)
    names = sorted(weights)
    half = len(names) // 2
    where = {}
    for shard, part in (("a.safetensors", names[:half]), ("b.safetensors", names[half:])):
        save_file({name: weights[name] for name in part}, saved / shard)
        where |= dict.fromkeys(part, shard)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert torch.equal(inazuma.load(saved)(tokens(1, 20)), whole(tokens(1, 20)))
    (saved / "b.safetensors").unlink()
    refuses(saved, r"b\.safetensors: no such file")


def test_the_tokenizer_goes_along(saved, tmp_path):
    files = {
        "tokenizer.json": '{"a": "稲妻"}',
        "tokenizer_config.json": "{}",
        "special_tokens_map.json": "{}",
        "chat_template.jinja": "{{ x }}",
    }
    assert inazuma.load(saved).tokenizer_folder is None
    for name, text in files.items():
        (saved / name).write_text(text, encoding="utf-8")
    (saved / "unrelated.bin").write_bytes(b"x")
    loaded = inazuma.load(saved)
    loaded.save(tmp_path / "copy")
    assert {name: (tmp_path / "copy" / name).read_text(encoding="utf-8") for name in files} == files
    assert not (tmp_path / "copy/unrelated.bin").exists()
    with pytest.raises(UserError, match="loaded from here"):
        loaded.save(saved, force=True)
    assert (saved / "tokenizer.json").exists()


# -------------------------------------------------------------------------------------------------- nothing overwritten


def test_an_existing_folder_is_refused_and_left_as_it_was(saved):
    before = contents(saved)
    with pytest.raises(UserError, match="--force") as error:
        build(tiny(), seed=1, dtype=torch.float32).save(saved)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_force_replaces_the_folder_even_after_a_refusal(saved):
    (saved / "old.txt").write_text("gone afterwards")
    other = build(tiny(), seed=1, dtype=torch.float32)
    with pytest.raises(UserError):
        other.save(saved)
    other.save(saved, force=True)
    assert set(contents(saved)) == {"config.json", "generation_config.json", "model.safetensors"}
    assert torch.equal(inazuma.load(saved).lm_head.weight, other.lm_head.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_an_empty_folder_may_be_filled_and_missing_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "a/b/c", str(tmp_path / "text") + "/"):
        build(tiny(), dtype=torch.float32).save(path)
        inazuma.load(path)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "model").write_text("mine")
    for force in (False, True):
        with pytest.raises(UserError, match="not a folder"):
            build(tiny(), dtype=torch.float32).save(tmp_path / "model", force=force)
    assert contents(tmp_path) == {"model": b"mine"}


def test_a_neighbour_of_a_similar_name_is_left_alone(tmp_path):
    (tmp_path / "model.new").mkdir()
    (tmp_path / "model.new/mine").write_text("mine")
    for force in (False, True):
        build(tiny(), dtype=torch.float32).save(tmp_path / "model", force=force)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.new"]
    assert contents(tmp_path / "model.new") == {"mine": b"mine"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_save_leaves_the_old_folder_and_nothing_else(force, exists, tmp_path, monkeypatch):
    model = build(tiny(), dtype=torch.float32)
    if exists:
        model.save(tmp_path / "model")
    before = contents(tmp_path / "model") if exists else None

    def fill_the_disk(weights, path, **options):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    with pytest.raises((OSError, UserError)):  # refused before it is written, or failed while it was
        model.save(tmp_path / "model", force=force)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * exists
    if exists:
        assert contents(tmp_path / "model") == before
    model.save(tmp_path / "model", force=True)
    inazuma.load(tmp_path / "model")


# ------------------------------------------------------------------------------------------------ what is no checkpoint


def refuses(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        inazuma.load(folder)
    assert "\n" not in str(error.value)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: x.clone() for name, x in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_no_folder(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: no such model folder")
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", "no such model folder")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(name, saved):
    (saved / name).unlink()
    refuses(saved, f"{name}: no such file")


def test_a_pickle_is_never_read(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    refuses(saved, r"pytorch_model\.bin: a pickle can run any code, so it is never read")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\udcff", '"text"'], ids=repr)
def test_a_configuration_that_is_none(text, saved):
    (saved / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refuses(saved, r"config\.json")


@pytest.mark.parametrize("keep", [0, 4, 100, 10_000, -1])
def test_truncated_weights(keep, saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuses(saved, r"model\.safetensors: damaged")


def test_weights_that_are_something_else(saved):
    header = b"not json"
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    refuses(saved, r"model\.safetensors: damaged")


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": []}'])
def test_a_shard_index_that_is_none(index, saved):
    (saved / "model.safetensors.index.json").write_text(index)
    refuses(saved, r"model\.safetensors\.index\.json")


def test_a_tensor_of_another_shape(saved):
    name = "model.layers.1.self_attn.indexer.wk.weight"
    change_weights(saved, lambda weights: weights.update({name: weights[name][:, :-1].contiguous()}))
    refuses(saved, r"model\.layers\.1\.self_attn\.indexer\.wk\.weight is \[18, 39\], the configuration says \[18, 40\]")


def test_a_missing_tensor(saved):
    change_weights(saved, lambda weights: weights.pop("model.norm.weight"))
    refuses(saved, r"lacks model\.norm\.weight \(1 tensors missing, 0 surplus\)")


def test_a_surplus_tensor(saved):
    change_weights(saved, lambda weights: weights.update({"model.layers.0.mlp.gate.weight": torch.ones(2)}))
    refuses(saved, r"has model\.layers\.0\.mlp\.gate\.weight, .*\(0 tensors missing, 1 surplus\)")


def test_a_dense_model_taken_for_a_sparse_one(tmp_path):
    build(tiny(index_topk=None), dtype=torch.float32).save(tmp_path / "model")
    file = tmp_path / "model/config.json"
    hf = json.loads(file.read_text())
    sparse = {"index_topk": 12, "index_n_heads": 8, "index_head_dim": 18}
    file.write_text(json.dumps(hf | sparse | {"model_type": "deepseek_v32"}))
    missing = sum(is_indexer(name) for name in build(tiny()).state_dict())
    refuses(tmp_path / "model", rf"lacks model\.layers\.0\.self_attn\.indexer.*\({missing} tensors missing")


YARN_JSON = {"rope_type": "yarn", "rope_theta": 1e4} | vars(YARN)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "gpt2", "model_type: 'gpt2' is not supported; known are deepseek_v32"),
        ("model_type", None, "model_type"),
        ("model_type", ["deepseek_v32"], "model_type"),
        ("first_k_dense_replace", 1, "mlp_layer_types: first_k_dense_replace says something else"),
        ("mlp_layer_types", ["sparse", "dense", "sparse"], "mlp_layer_types"),
        ("auto_map", {"AutoModel": "modeling.Mine"}, "auto_map: code that comes with a checkpoint is never run"),
        ("final_logit_softcapping", 30.0, "final_logit_softcapping = 30.0 is not known for deepseek_v32"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "rope type 'linear' is not supported"),
        ("rope_parameters", YARN_JSON | {"attention_factor": 1.5}, "attention_factor"),
        ("rope_parameters", YARN_JSON | {"truncate": False}, "truncate"),
        ("rope_parameters", "yarn", "rope_parameters"),
        ("attention_bias", True, "attention_bias = True is not supported, only False"),
        ("hidden_act", "gelu", "hidden_act = 'gelu' is not supported, only 'silu'"),
        ("quantization_config", {"quant_method": "fp8"}, "quantization_config"),
        ("num_attention_heads", "four", "num_attention_heads"),
        ("q_lora_rank", None, "q_lora_rank"),
        ("vocab_size", -1, "vocab_size"),
        ("index_topk", 1 << 20, "index_topk"),
        ("num_hidden_layers", "three", "num_hidden_layers"),
    ],
)
def test_a_model_that_is_not_supported_is_refused_by_name(field, value, message, saved):
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    refuses(saved, message)


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_lora_rank", "index_topk"]
)
def test_a_configuration_without_a_shape_is_refused_by_name(field, tmp_path):
    # A default would be silently wrong where no tensor's shape contradicts it.
    build(tiny(max_position_embeddings=4096), dtype=torch.float32).save(tmp_path / "model")
    file = tmp_path / "model/config.json"
    hf = json.loads(file.read_text())
    del hf[field]
    file.write_text(json.dumps(hf))
    refuses(tmp_path / "model", field)


def test_the_family_of_our_own_refuses_what_it_does_not_know(tmp_path):
    build(tiny(attention="gqa"), dtype=torch.float32).save(tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"index_topkk": 3}))
    refuses(tmp_path / "model", "index_topkk: unknown key.*index_topk")
