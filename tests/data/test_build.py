from __future__ import annotations

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from inazuma.data import build as builder
from inazuma.data import duplicates
from inazuma.data.build import build
from inazuma.data.shards import Dataset, Split
from inazuma.errors import UserError
from tests.data.corpora import texts, write_json_lines


def documents(split: Split) -> list[list[int]]:
    """Token ids of every document, its leading marker included."""
    return [split.read(*split.document_start[index : index + 2]).tolist() for index in range(split.documents)]


def restored(dataset: Dataset, split: Split) -> list[str]:
    tokenizer = Tokenizer.from_file(str(dataset.tokenizer_path))
    return [tokenizer.decode(ids[1:], skip_special_tokens=False) for ids in documents(split)]


def test_the_stream_gives_back_every_text_with_its_facts(dataset):
    expected = texts(300)
    train, validation = restored(dataset, dataset.train), restored(dataset, dataset.validation)
    assert sorted(train + validation) == sorted(expected) and not set(train) & set(validation)
    assert [text for text in expected if text in set(train)] == train  # in the corpus's order
    for split, found in ((dataset.train, train), (dataset.validation, validation)):
        assert split.document_bytes.tolist() == [len(text.encode()) for text in found]
        assert split.document_start.dtype == np.int64 and split.document_bytes.dtype == np.int64
        assert split.document_start[-1] == split.tokens == sum(map(len, documents(split)))
        assert all(ids[0] == dataset.end_of_text and dataset.end_of_text not in ids[1:] for ids in documents(split))
        assert split.read(0, split.tokens).tolist() == [token for ids in documents(split) for token in ids]
        lines = [int(split.source(index).rpartition("corpus.jsonl:")[2]) for index in range(split.documents)]
        assert [expected[line - 1] for line in lines] == found
    assert len(dataset.manifest["splits"]["train"]["shards"]) > 3
    assert 30 < dataset.validation.documents < 90  # a fifth of 300


def test_text_that_spells_the_marker_is_text(tmp_path):
    lines = ["<|endoftext|> in <|endoftext|> a text" + "<|endoftext|>" * n for n in range(40)]
    build([write_json_lines(tmp_path / "a.jsonl", lines)], tmp_path / "out", vocab_size=270, validation_fraction=0.5)
    dataset = Dataset.open(tmp_path / "out")
    ids = dataset.train.read(0, dataset.train.tokens)
    assert (ids == dataset.end_of_text).sum() == dataset.train.documents
    assert sorted(restored(dataset, dataset.train) + restored(dataset, dataset.validation)) == sorted(lines)


def test_the_same_corpus_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    source = write_json_lines(tmp_path / "a.jsonl", texts(60))
    one, two = (build([source], tmp_path / name, vocab_size=280, validation_fraction=0.2) for name in ("one", "two"))
    assert one == two
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    other = write_json_lines(tmp_path / "b.jsonl", texts(61))
    changed = build([other], tmp_path / "three", vocab_size=280, validation_fraction=0.2)
    assert changed["fingerprint"] != one["fingerprint"]


def test_duplicates_are_dropped_and_counted_and_the_split_follows_the_content(tmp_path):
    lines = texts(200)
    alone = write_json_lines(tmp_path / "a.jsonl", lines)
    shuffled = random.Random(1).sample(lines * 3 + [""] * 5, 605)
    write_json_lines(tmp_path / "b.jsonl", shuffled)
    build([alone], tmp_path / "alone", vocab_size=280, validation_fraction=0.3)
    manifest = build([tmp_path / "b.jsonl", alone], tmp_path / "mixed", vocab_size=280, validation_fraction=0.3)
    assert manifest["documents"] | {"read": 805, "empty": 5, "duplicates": 600} == manifest["documents"]
    one, other = Dataset.open(tmp_path / "alone"), Dataset.open(tmp_path / "mixed")
    assert sorted(restored(one, one.train)) == sorted(restored(other, other.train))
    assert sorted(restored(one, one.validation)) == sorted(restored(other, other.validation))
    first_seen = sorted(set(lines), key=shuffled.index)
    assert [text for text in first_seen if text in set(restored(one, one.train))] == restored(other, other.train)


def test_seen_digests_agrees_with_a_set():
    chance = random.Random(0)
    seen, expected = duplicates.SeenDigests(), set()
    for size in [1, 5, 200, 3, 0, 1000, 7, 50] * 3:
        # Few distinct values, some ending in zero bytes, which NumPy's strings do not show.
        batch = [chance.randrange(4000).to_bytes(4, "big") + bytes(12) for _ in range(size)]
        new = [digest not in expected and digest not in batch[:index] for index, digest in enumerate(batch)]
        assert seen.add(batch).tolist() == new
        expected.update(batch)


def byte_level(path, size: int) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(f"unused{n}" for n in range(size - 257))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "<u2"), (65_537, "<u4")])
def test_a_given_tokenizer_is_used_and_ids_beyond_16_bits_fit(tmp_path, size, dtype):
    byte_level(tmp_path / "given.json", size)
    source = write_json_lines(tmp_path / "a.jsonl", texts(20))
    manifest = build([source], tmp_path / "out", tokenizer=tmp_path / "given.json", validation_fraction=0.3)
    dataset = Dataset.open(tmp_path / "out", verify=True)
    assert manifest["dtype"] == dtype and dataset.vocab_size == size and dataset.end_of_text == size - 1
    assert dataset.train.read(0, 1).tolist() == [size - 1]
    assert dataset.train.tokens == dataset.train.document_bytes.sum() + dataset.train.documents  # a token a byte
    assert manifest["documents"]["not_restored"] == 20  # this file has no decoder


def test_progress_counts_the_bytes_of_both_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "REPORT_BYTES", 10_000)
    source = write_json_lines(tmp_path / "a.jsonl", texts(500))
    calls = []
    options = {"vocab_size": 280, "validation_fraction": 0.5}
    build([source], tmp_path / "out", **options, progress=lambda *call: calls.append(call))
    size = source.stat().st_size
    for phase in ("reading", "encoding"):
        done = [call[1] for call in calls if call[0] == phase]
        assert done[0] == 0 and done[-1] == size and len(done) > 3 and done == sorted(done)
        assert {call[2] for call in calls if call[0] == phase} == {size}


def assert_nothing_left(folder, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([""] * 3, {}, r"no text to read: every document is empty"),
        (["one text " * 30], {}, "only one document and two splits"),
        (["same text " * 30] * 9, {}, "only one document and two splits"),
        (texts(3, seed=1), {}, r"the validation split is empty: 3 documents are too few"),
        (texts(3, seed=1), {"validation_fraction": 0.999}, r"the train split is empty: 3 documents are too few"),
        (texts(30), {"vocab_size": 100_000}, r"a vocabulary of 100000 is larger than the text can fill"),
        (texts(30), {"vocab_size": 256}, r"a vocabulary of 256: 257 is the least"),
        (texts(30), {"validation_fraction": 1.0}, r"a validation fraction of 1\.0: it must lie between"),
        (texts(30), {"text_field": "body"}, r"a\.jsonl:1: no field 'body'"),
        (texts(30), {"tokenizer": "missing.json"}, r"missing\.json: no such file"),
    ],
)
def test_what_cannot_be_built_leaves_nothing(tmp_path, lines, options, message):
    source = write_json_lines(tmp_path / "a.jsonl", lines)
    with pytest.raises(UserError, match=message):
        build([source], tmp_path / "out", **{"vocab_size": 257} | options)
    assert_nothing_left(tmp_path, "a.jsonl")


def test_an_error_late_in_the_corpus_leaves_nothing(tmp_path):
    byte_level(tmp_path / "given.json", 300)
    source = write_json_lines(tmp_path / "a.jsonl", texts(50))
    source.write_text(source.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"a\.jsonl:51: malformed JSON"):
        build([source], tmp_path / "out", tokenizer=tmp_path / "given.json")
    assert_nothing_left(tmp_path, "a.jsonl", "given.json")


def test_a_small_corpus_is_told_which_fraction_works(tmp_path):
    source = write_json_lines(tmp_path / "a.jsonl", texts(8, seed=3))
    with pytest.raises(UserError, match="the validation split is empty") as caught:
        build([source], tmp_path / "out", vocab_size=257, validation_fraction=0.001)
    fraction = float(str(caught.value).split("--validation-fraction ")[1].split()[0])
    splits = build([source], tmp_path / "out", vocab_size=257, validation_fraction=fraction)["splits"]
    assert splits["validation"]["documents"] == 1 and splits["train"]["documents"] == 7


def test_an_existing_folder_is_kept_unless_forced_and_kept_when_that_fails(tmp_path):
    source = write_json_lines(tmp_path / "a.jsonl", texts(40))
    build([source], tmp_path / "out", vocab_size=257, validation_fraction=0.3)
    before = json.loads((tmp_path / "out" / "manifest.json").read_text())
    with pytest.raises(UserError, match=r"out: exists and is not empty"):
        build([source], tmp_path / "out", vocab_size=260, validation_fraction=0.3)
    with pytest.raises(UserError, match="larger than the text can fill"):
        build([source], tmp_path / "out", vocab_size=90_000, validation_fraction=0.3, force=True)
    assert Dataset.open(tmp_path / "out", verify=True).manifest == before
    build([source], tmp_path / "out", vocab_size=260, validation_fraction=0.3, force=True)
    assert Dataset.open(tmp_path / "out", verify=True).vocab_size == 260
    assert_nothing_left(tmp_path, "a.jsonl", "out")


def test_the_output_is_never_an_input(tmp_path):
    source = write_json_lines(tmp_path / "a.jsonl", texts(40))
    for _ in range(2):  # the second time, the first one's files lie inside the folder that is read
        manifest = build([tmp_path], tmp_path / "out", vocab_size=257, validation_fraction=0.3, force=True)
        assert manifest["sources"]["files"] == 1
    with pytest.raises(UserError, match=r"a\.jsonl: lies in the output folder"):
        build([source], tmp_path, vocab_size=257, force=True)
    assert source.exists()
