from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from inazuma.data import tokenizer as module
from inazuma.data.tokenizer import END_OF_TEXT, Sample, load_tokenizer, save_tokenizer, train_tokenizer
from inazuma.errors import UserError
from tests.data.corpora import texts


def sample_of(lines: list[str]) -> Sample:
    sample = Sample()
    for key, text in enumerate(lines):
        sample.offer(key, text, len(text.encode()))
    return sample


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(sample_of([*texts(200), *[f"{END_OF_TEXT} <|endoftext|>{n}" for n in range(50)]]), 400)


NASTY = [
    "", " ", "  leading and trailing  ", "\r\n\r\r\n\n", "\t\x00\x01\x7f\x85\u2028", "稲妻、日本語。", "ｶﾞ が が ①",
    "👩‍👩‍👧‍👦🏳️‍🌈 🌩", "e\u0301 \u00e9", "\ufeff\ufffd", "a" * 5000, "Ġ Ċ ▁", "𝔘𐍈", "don't 'S 12345 x==y", END_OF_TEXT,
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_survives_a_round_trip(trained, text):
    ids = trained.encode(text, add_special_tokens=False).ids
    assert trained.decode(ids, skip_special_tokens=False).encode() == text.encode()
    assert trained.token_to_id(END_OF_TEXT) not in ids


@given(st.text())
def test_any_text_survives_a_round_trip(trained, text):
    ids = trained.encode_batch_fast([text], add_special_tokens=False)[0].ids
    assert trained.decode(ids, skip_special_tokens=False) == text


def test_the_vocabulary_has_the_asked_size_and_the_marker_first(trained):
    assert sorted(trained.get_vocab().values()) == list(range(400))
    assert trained.token_to_id(END_OF_TEXT) == 0
    merged = [token for token in trained.get_vocab() if len(token) > 1 and token != END_OF_TEXT]
    assert len(merged) == 400 - 257


def test_a_vocabulary_that_the_text_cannot_fill_names_the_size_that_it_can():
    with pytest.raises(UserError, match=r"vocabulary of 100000 .* (\d+) entries were reached") as caught:
        train_tokenizer(sample_of(texts(50)), 100_000)
    reached = int(str(caught.value).split("--vocab-size ")[1].split()[0])
    assert 257 < reached < 100_000
    assert train_tokenizer(sample_of(texts(50)), reached).get_vocab_size() == reached


def test_the_sample_is_bounded_and_the_order_of_the_corpus_does_not_matter(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1000)
    offers = [(key * 7919 % 1009, f"{key:020}", 20) for key in range(500)]
    one, other = Sample(), Sample()
    for offer in offers:
        one.offer(*offer)
    for offer in [*offers[::-1], *offers]:
        other.offer(*offer)
    expected = [text for _, text, _ in sorted(offers)[:50]]
    assert list(one.texts()) == list(other.texts()) == expected


def test_the_sample_ends_where_the_distinct_words_become_too_many(monkeypatch):
    monkeypatch.setattr(module, "DISTINCT_BYTES", 100)
    assert len(list(sample_of(["same words again"] * 50).texts())) == 50
    assert len(list(sample_of([f"{n:010}" for n in range(50)]).texts())) == 10
    assert len(list(sample_of(["x" * 1000, "y"]).texts())) == 1


def given_tokenizer(path, *, special: list[str], config: dict | None = None):
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path / "tokenizer.json"


def test_a_given_tokenizer_neither_truncates_nor_pads(tmp_path):
    tokenizer, end_of_text = load_tokenizer(given_tokenizer(tmp_path, special=["</s>"]))
    assert end_of_text == "</s>"
    assert tokenizer.encode_batch(["a b a", "b </s>"], add_special_tokens=False)[0].ids == [1, 2, 1]
    assert tokenizer.encode("b </s>", add_special_tokens=False).ids == [2, 0]


@pytest.mark.parametrize("name", ["<stop>", {"content": "<stop>", "lstrip": False}])
def test_the_configuration_beside_it_names_the_marker_and_is_kept(tmp_path, name):
    config = {"eos_token": name, "chat_template": "kept"}
    path = given_tokenizer(tmp_path, special=["</s>", "<stop>"], config=config)
    tokenizer, end_of_text = load_tokenizer(path)
    assert end_of_text == "<stop>"
    (tmp_path / "out").mkdir()
    save_tokenizer(tokenizer, end_of_text, tmp_path / "out", given=path)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == config


def test_a_tokenizer_without_a_marker_and_files_that_are_none_are_named(tmp_path):
    path = given_tokenizer(tmp_path, special=["<pad>"], config={"eos_token": "a"})
    with pytest.raises(UserError, match=r"tokenizer\.json: no end-of-text token among its special tokens \(<pad>\)"):
        load_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        load_tokenizer(path)
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "nothing.json")


def test_transformers_loads_the_folder_and_agrees(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(trained, END_OF_TEXT, tmp_path, given=None)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in NASTY[:-1]:
        ids = loaded(text)["input_ids"]
        assert ids == trained.encode(text, add_special_tokens=False).ids
        assert loaded.decode(ids) == text
    assert loaded.eos_token_id == loaded.bos_token_id == 0
