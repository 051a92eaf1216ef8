from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inazuma.errors import UserError
from inazuma.serve.detokenize import Detokenizer, StopStrings, Vocabulary, overlap
from tests.serve import vocabularies

TOKENIZERS = {
    "byte level": vocabularies.byte_level(special=["<|im_end|>", "<tool_call>"], added=["<｜User｜>"]),
    "sentencepiece": vocabularies.sentencepiece(),
    "metaspace": vocabularies.metaspace(),
}
VOCABULARIES = {name: Vocabulary(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def pieces_of(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.data(), skip=st.booleans())
def test_the_pieces_are_what_the_tokenizer_decodes_whatever_the_ids(name, data, skip):
    tokenizer = TOKENIZERS[name]
    # Ids beyond the vocabulary too: a model's may be padded.
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    pieces = pieces_of(Detokenizer(VOCABULARIES[name], skip_special_tokens=skip), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["byte level", "sentencepiece"])
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(text=st.text(alphabet=" ab.é日😀👩🏽\n", max_size=20))
def test_no_piece_ends_within_a_character(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(Detokenizer(VOCABULARIES[name]), ids)
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text


def test_characters_come_with_the_token_that_completes_them():
    ids = TOKENIZERS["byte level"].encode("a𝄞b", add_special_tokens=False).ids
    assert len(ids) == 6  # the clef is four tokens
    pieces = pieces_of(Detokenizer(VOCABULARIES["byte level"]), ids)
    assert pieces == ["a", "", "", "", "𝄞", "b", ""]


def test_a_text_that_ends_within_a_character_shows_it():
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a𝄞", add_special_tokens=False).ids[:-1]
    assert pieces_of(Detokenizer(tokenizer), ids)[-1] == "\ufffd"


def test_a_piece_costs_the_same_however_long_the_text_is():
    detokenizer = Detokenizer(VOCABULARIES["sentencepiece"])
    lengths, decode = [], detokenizer._decode
    detokenizer._decode = lambda ids: (lengths.append(len(ids)), decode(ids))[1]
    word = TOKENIZERS["sentencepiece"].token_to_id("▁ab")
    pieces_of(detokenizer, [word] * 500)
    assert max(lengths) == 2


def test_markers_are_kept_whether_they_are_special_or_not():
    tokenizer = TOKENIZERS["byte level"]
    ids = [tokenizer.token_to_id("<tool_call>"), tokenizer.token_to_id("<|im_end|>")]
    assert "".join(pieces_of(Detokenizer(tokenizer, keep=["<tool_call>"]), ids)) == "<tool_call>"
    assert "".join(pieces_of(Detokenizer(tokenizer), ids)) == ""


def test_bytes_and_text_of_single_tokens():
    vocabulary, tokenizer = VOCABULARIES["byte level"], TOKENIZERS["byte level"]
    text = "naïve 日本𝄞<｜User｜>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(vocabulary.token_bytes(id) for id in ids) == text.encode()
    part = tokenizer.encode("𝄞", add_special_tokens=False).ids[0]
    assert (vocabulary.token_bytes(part), vocabulary.token_text(part)) == (b"\xf0", "\ufffd")
    assert vocabulary.token_text(tokenizer.token_to_id("<|im_end|>")) == "<|im_end|>"
    assert vocabulary.token_bytes(tokenizer.get_vocab_size() + 5) == b""
    vocabulary, tokenizer = VOCABULARIES["sentencepiece"], TOKENIZERS["sentencepiece"]
    assert vocabulary.token_bytes(tokenizer.token_to_id("▁ab")) == b" ab"
    assert vocabulary.token_bytes(tokenizer.token_to_id("<0xE6>")) == b"\xe6"


def first_stop(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, by the definition."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def cut(text: str, places: list[int]) -> list[str]:
    places = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
    places=st.lists(st.integers(0, 1000), max_size=10),
)
def test_stop_strings_end_the_text_wherever_the_pieces_break(text, stops, places):
    stopper, shown, seen = StopStrings(stops), "", ""
    for piece in cut(text, places):
        emit, stopped = stopper.push(piece)
        shown, seen = shown + emit, seen + piece
        if stopped:
            break
        # What is held back may still become a stop string: nothing else is.
        held = seen[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    else:
        shown += stopper.flush()
    assert shown == first_stop(text, stops)
    assert (stopper.matched is not None) == any(stop in text for stop in stops)


def test_nothing_comes_after_a_stop_string():
    stopper = StopStrings(["END"])
    assert stopper.push("aEN") == ("a", False)
    assert stopper.push("Db") == ("", True)
    assert stopper.push("c") == ("", True)
    assert (stopper.matched, stopper.flush()) == ("END", "")


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(UserError, match="stop"):
        StopStrings(["a", ""])


def test_overlap():
    assert overlap("a<tool", ["<tool_call>"]) == 5
    assert overlap("<tool_call>", ["<tool_call>"]) == 0
    assert overlap("aa", ["aaa", "ab"]) == 2
