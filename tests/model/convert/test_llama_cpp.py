"""What llama.cpp's own server makes of the GGUF files written here: tokens, likeliest tokens, greedy text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from inazuma.model.convert.gguf_read import open_gguf
from inazuma.model.convert.gguf_write import write_gguf
from inazuma.model.convert.vocabulary import SPLITS, write_tokenizer
from inazuma.model.text import tokenizer_of
from tests.model.convert.llama_cpp import LlamaCpp
from tests.model.convert.models import KINDS, VOCABULARY, model_of

LENGTH = 96
TEXTS = ["abc def  ghi", "It's 1234 cafés, 稲妻!\n\n\tx  ", "<|endoftext|> is text", "", " a\r\nb'll 3½ ₅"]


def incomplete(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are not whole characters, and the end of the text."""
    return [0, *(id for id in range(1, VOCABULARY) if not tokenizer.id_to_token(id).isascii())]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    sparse = model.config.index_topk is not None
    write_gguf(model, tmp_path / "model.gguf")
    server = LlamaCpp(tmp_path / "model.gguf", flash_attention=sparse)
    never = incomplete(tokenizer_of(model))
    ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert expected.std() > 0.5  # near zero anything would agree
    same, distances = 0, []
    for position in range(LENGTH):
        best = server.complete(ids[: position + 1], 1, never=never)[0]["top_logprobs"]
        same += best[0]["id"] == expected[position].argmax().item()
        distances.append(max(abs(token["logprob"] - expected[position, token["id"]].item()) for token in best))
    if sparse:
        # Their index keys pass through float16: now and then another token is the last one selected. Before anything
        # is selected there is no such difference.
        assert max(distances[: model.config.index_topk]) < 0.02
        assert same >= 0.98 * LENGTH and sorted(distances)[LENGTH // 2] < 0.02
    else:
        assert same == LENGTH and max(distances) < 1e-3
    row = ids[:4]
    text = [token["id"] for token in server.complete(row, 20, never=never)]
    for _ in text:
        logits = model(torch.tensor([row]))[0, -1]
        logits[never] = -torch.inf
        row.append(logits.argmax().item())
    assert row[4:] == text and len(text) == 20


def test_a_tokenizer_trained_here_gives_the_same_tokens(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    write_gguf(model, tmp_path / "model.gguf")
    server, tokenizer = LlamaCpp(tmp_path / "model.gguf"), tokenizer_of(model)
    for text in TEXTS:
        assert server.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_that_has_a_name_is_that_of_llama_cpp(name: str, tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text(encoding="utf-8"))
    steps = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in SPLITS[name].expressions
    ]
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, bytes_of]}
    whole["model"]["ignore_merges"] = SPLITS[name].ignore_merges
    # Merges that only a wrong split would use, so that every split shows in the tokens.
    vocabulary, letters = whole["model"]["vocab"], ["1", "2", "a", "'", "Ġ", "Ċ", "!", "s"]
    pairs = [(a, b) for a in letters for b in letters][: VOCABULARY - 257]
    vocabulary = {token: id for token, id in vocabulary.items() if id < 257}
    whole["model"]["vocab"] = vocabulary | {a + b: 257 + number for number, (a, b) in enumerate(pairs)}
    whole["model"]["merges"] = [list(pair) for pair in pairs]
    file.write_text(json.dumps(whole), encoding="utf-8")
    write_gguf(model, tmp_path / "model.gguf")
    fields, _ = open_gguf(tmp_path / "model.gguf")
    assert fields["tokenizer.ggml.pre"] == name
    server = LlamaCpp(tmp_path / "model.gguf")
    (tmp_path / "again").mkdir()
    write_tokenizer(fields, tmp_path / "again", tmp_path)
    again, given = (Tokenizer.from_file(str(x)) for x in (tmp_path / "again/tokenizer.json", file))
    given.encode_special_tokens = again.encode_special_tokens = True
    for text in (*TEXTS, "a1212a's  a\n\n!!\na 'S!a ss12 \n", "a221 22112211 2", "x=a+1; // 稲妻 а́ Ωs\t\ta"):
        ids = server.tokenize(text)
        assert given.encode(text, add_special_tokens=False).ids == ids, text
        assert again.encode(text, add_special_tokens=False).ids == ids, text
