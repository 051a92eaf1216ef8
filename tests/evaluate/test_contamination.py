"""Planted contamination is found exactly, clean items are not flagged, and what cannot be known is not said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from inazuma import cli
from inazuma.data.build import build
from inazuma.errors import UserError
from inazuma.evaluate.contamination import Contamination, contamination
from inazuma.evaluate.overlap import ItemIndex, words_of
from inazuma.runs import Run

VOCABULARY = [f"w{number}" for number in range(3000)]
ITEM = "the lightning indexer scores every earlier token and keeps only the best few of them for the attention to read"
PARAPHRASE = "before it attends the model ranks all past positions cheaply then looks at a handful that ranked highest"


def text(words: random.Random, length: int) -> str:
    return " ".join(words.choices(VOCABULARY, k=length))


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder, words = tmp_path / "texts", random.Random(0)
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(text(words, 300))
    return folder


def plant(corpus: Path, document: str, what: str) -> None:
    file = corpus / document
    words = file.read_text().split()
    file.write_text(" ".join([*words[:100], what, *words[100:]]))


def look(tmp_path: Path, corpus: Path | None, *texts: str, **more: Any) -> Contamination:
    lines = [{"id": str(number), "text": one} for number, one in enumerate(texts)]
    return contamination(jsonl(tmp_path / "items.jsonl", lines), corpus, **more)


def test_a_planted_item_is_found_where_it_is_and_clean_ones_are_not_flagged(corpus, tmp_path):
    words = random.Random(1)
    clean = [text(words, 40) for _ in range(50)]
    shuffled = " ".join(words.sample(ITEM.split(), k=len(ITEM.split())))
    plant(corpus, "07.txt", ITEM)
    found = look(tmp_path, corpus, *clean, ITEM, shuffled)
    states = [item.state for item in found.items]
    assert states == ["not decidable"] * 50 + ["overlap", "not decidable"]
    one = found.items[50]
    assert one.covered == 1.0 and one.documents == 1
    [place] = one.places
    assert place["source"].endswith("07.txt") and place["document"] == 7
    assert place["item_words"] == (0, len(ITEM.split())) and place["document_word"] == 100 and place["text"] == ITEM
    assert found.data["documents"] == 40 and found.data["words"] == 40 * 300 + len(ITEM.split())


def test_case_punctuation_and_unicode_forms_do_not_hide_it(corpus, tmp_path):
    plant(corpus, "03.txt", "—" + ITEM.upper().replace(" ", ",\n", 5) + "!")
    plant(corpus, "04.txt", "ｆｕｌｌｗｉｄｔｈ カタカナと漢字の文は一文字ずつ語として数える")
    found = look(tmp_path, corpus, ITEM, "ﾌﾙ fullwidth カタカナと漢字の文は、一文字ずつ語として数える。")
    assert [item.state for item in found.items] == ["overlap", "overlap"]


@pytest.mark.parametrize(("shared", "state"), [(12, "not decidable"), (13, "overlap")])
def test_thirteen_words_in_a_row_are_the_bound(corpus, tmp_path, shared, state):
    own = text(random.Random(2), 60).split()
    plant(corpus, "00.txt", " ".join(own[20 : 20 + shared]))
    [item] = look(tmp_path, corpus, " ".join(own)).items
    assert item.state == state
    if state == "overlap":
        assert item.covered == shared / 60 and item.places[0]["item_words"] == (20, 20 + shared)


@pytest.mark.parametrize(("words", "state"), [(7, "not decidable"), (8, "overlap"), (12, "overlap")])
def test_a_short_item_must_stand_there_whole_and_a_shorter_one_is_not_decided(corpus, tmp_path, words, state):
    own = [f"x{number}" for number in range(words)]
    plant(corpus, "00.txt", " ".join(own))
    plant(corpus, "01.txt", " ".join(own[:-1]))
    [item] = look(tmp_path, corpus, " ".join(own)).items
    assert item.state == state and item.documents == (state == "overlap")
    if state == "not decidable":
        assert item.why == "7 words; 8 are the least"


def test_changed_words_leave_a_near_duplicate_and_a_paraphrase_is_honestly_not_found(corpus, tmp_path):
    changed = [f"changed{n}" if n % 8 == 3 else word for n, word in enumerate(ITEM.split())]
    plant(corpus, "11.txt", " ".join(changed))
    plant(corpus, "12.txt", PARAPHRASE)
    near, other = look(tmp_path, corpus, ITEM, "a question that is asked nowhere but here and now of nobody").items
    assert near.state == "near duplicate" and near.covered == 0
    # 18 trigrams, of which those with the words 3 and 11 (three each) and 19 (one) are gone... counted apart:
    own = ITEM.split()
    kept = sum(own[n : n + 3] == changed[n : n + 3] for n in range(len(own) - 2))
    assert near.places[0]["share"] == kept / (len(own) - 2) and near.places[0]["source"].endswith("11.txt")
    assert other.state == "not decidable"
    [paraphrased] = look(tmp_path, corpus, f"q {PARAPHRASE}"[2:], run=None).items
    assert paraphrased.state == "overlap"
    (corpus / "11.txt").unlink()
    found = look(tmp_path, corpus, ITEM)
    assert found.items[0].state == "not decidable" and "paraphrases and translations are not found" in found.limits


def test_a_long_item_is_searched_in_pieces(corpus, tmp_path):
    own = text(random.Random(5), 500).split()
    part = [word if n % 7 else "other" for n, word in enumerate(own[256:320])]
    plant(corpus, "20.txt", " ".join(part))
    [item] = look(tmp_path, corpus, " ".join(own)).items
    assert item.state == "near duplicate" and item.places[0]["item_words"] == (256, 320)


# ------------------------------------------------------------------------------------------ against counting by hand


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_overlaps_are_those_of_a_search_by_hand(data):
    """A tiny vocabulary makes coincidences; every 13 words of the item are looked for in every document."""
    letter = st.sampled_from("ab")
    items = data.draw(st.lists(st.lists(letter, min_size=13, max_size=24), min_size=1, max_size=3))
    documents = data.draw(st.lists(st.lists(letter, max_size=60), max_size=3))
    documents += [document + data.draw(st.sampled_from(items)) for document in documents]
    index = ItemIndex([" ".join(item) for item in items])
    for number, document in enumerate(documents):
        assert index.scan(number, "d", " ".join(document)) == len(document)
    for item, found in zip(items, index.found, strict=True):
        covered = set()
        for start in range(len(item) - 12):
            gram = item[start : start + 13]
            if any(gram == doc[n : n + 13] for doc in documents for n in range(len(doc) - 12)):
                covered |= set(range(start, start + 13))
        assert set(found.covered.nonzero()[0].tolist()) == covered


def test_near_duplicates_are_those_of_a_search_by_hand():
    """Every window counted, at all positions: above the share that steps can cost, all are found."""
    words = random.Random(9)
    items = [words.choices(VOCABULARY, k=words.choice([10, 20, 40, 64])) for _ in range(40)]
    documents = []
    for item in items:
        rate = words.uniform(0.0, 0.35)
        noisy = [f"n{words.random()}" if words.random() < rate else word for word in item]
        documents.append(words.choices(VOCABULARY, k=200) + noisy + words.choices(VOCABULARY, k=200))
    index = ItemIndex([" ".join(item) for item in items])
    for number, document in enumerate(documents):
        index.scan(number, "d", " ".join(document))
    counts = {"above": 0, "below": 0}
    for item, document, found in zip(items, documents, index.found, strict=True):
        trigrams = {tuple(item[n : n + 3]) for n in range(len(item) - 2)}
        windows = (document[n : n + len(item)] for n in range(len(document) - len(item) + 1))
        best = max(len(trigrams & set(zip(w, w[1:], w[2:], strict=False))) / len(trigrams) for w in windows)
        flagged = bool(found.near or found.overlaps)
        if best >= 0.5 + 1 / 8:
            counts["above"] += 1
            assert flagged
        elif best < 0.5:
            counts["below"] += 1
            assert not found.near
        if found.near:
            assert 0.5 <= max(place.share for place in found.near) <= best
    assert min(counts.values()) > 10


# ------------------------------------------------------------------------------------------- what may be called clean


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Path:
    plant(corpus, "07.txt", ITEM)
    build([corpus], tmp_path / "data", vocab_size=600, validation_fraction=0.2)
    return tmp_path / "data"


def trained(path: Path, **inputs: str) -> Path:
    run = Run.create(path, command=["inazuma", "train"], config={}, inputs=inputs)
    run.finish("finished")
    return path


def test_only_the_run_that_read_these_data_makes_an_item_clean(dataset, tmp_path):
    from inazuma.data.shards import Dataset

    fingerprint = Dataset.open(dataset).fingerprint
    clean = text(random.Random(3), 30)

    def states(**more: Any) -> list[str]:
        return [item.state for item in look(tmp_path, dataset, ITEM, clean, **more).items]

    in_training = "07.txt" in {Path(Dataset.open(dataset).train.source(n)).name for n in range(30)}
    assert in_training
    assert states(run=trained(tmp_path / "runs/a", data=fingerprint)) == ["overlap", "clean"]
    assert states() == ["overlap", "not decidable"]
    assert states(run=trained(tmp_path / "runs/b", data="0" * 64)) == ["overlap", "not decidable"]
    assert states(run=trained(tmp_path / "runs/c", data=fingerprint, weights="1")) == ["overlap", "not decidable"]
    found = look(tmp_path, None, ITEM, clean)
    assert not found.decided and found.why == "nobody here has the training data"
    assert [item.state for item in found.items] == ["not decidable"] * 2 and "clean" not in found.scores


def test_validation_documents_were_not_trained_on(corpus, tmp_path):
    build([corpus], tmp_path / "data", vocab_size=600, validation_fraction=0.2)
    from inazuma.data.shards import Dataset

    split = Dataset.open(tmp_path / "data").validation
    held_out = Path(split.source(0)).read_text()
    [item] = look(tmp_path, tmp_path / "data", held_out).items
    assert item.state == "not decidable" and item.documents == 0


def test_both_parts_are_scored_with_intervals(corpus, tmp_path):
    words = random.Random(4)
    lines = []
    for number in range(40):
        dirty = number < 15
        prompt = text(words, 30)
        if dirty:
            plant(corpus, f"{number:02}.txt", prompt)
        outcome = "correct" if number % 5 else "wrong"
        line = {"task": "t", "item": f"i{number}", "id": f"i{number}", "cluster": f"c{number}", "prompt": prompt}
        lines.append(line | {"outcome": outcome, "score": float(outcome == "correct"), "target": "yes"})
    lines.append(lines[-1] | {"id": "broken", "outcome": "infrastructure_error", "score": 0.0})
    # As a chat, and without a cluster of its own.
    lines[20] |= {"prompt": [{"role": "user", "content": lines[20]["prompt"]}], "cluster": None}
    found = contamination(jsonl(tmp_path / "samples.jsonl", lines), corpus)
    dirty, other = found.scores["overlap"], found.scores["not decidable"]
    assert (dirty.items, dirty.mean) == (15, 12 / 15) and (other.items, other.mean) == (26, 20 / 25)
    for score, right, n in ((dirty, 12, 15), (other, 20, 25)):
        wilson = binomtest(right, n).proportion_ci(method="wilson")
        assert score.interval == pytest.approx((wilson.low, wilson.high))
    # The same scores in five clusters: dependent, so a wider, bootstrapped interval.
    clustered = [line | {"cluster": str(int(line["score"])) + str(n % 3)} for n, line in enumerate(lines[15:40])]
    low, high = contamination(jsonl(tmp_path / "samples.jsonl", clustered), corpus).scores["not decidable"].interval
    assert low < other.interval[0] and high > other.interval[1]


def test_the_verb(corpus, tmp_path, capsys):
    plant(corpus, "07.txt", ITEM)
    clean = {"id": "b", "text": text(random.Random(3), 30)}
    items = jsonl(tmp_path / "items.jsonl", [{"id": "a", "text": ITEM}, clean])
    assert cli.main(["contamination", str(corpus), str(items)]) == 1
    printed = capsys.readouterr().out
    assert "overlap: a: 20 of 20 words in a row, 1 documents" in printed and "07.txt" in printed
    assert "clean" not in printed and "paraphrases and translations are not found" in printed
    assert cli.main(["contamination", str(corpus), str(items), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["items"][0]["state"] == "overlap"
    jsonl(items, [clean])
    assert cli.main(["contamination", str(corpus), str(items)]) == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items"),
        ([{"id": 1, "question": "x"}], r"items\.jsonl:1: the line has no text"),
        ([{"id": 1, "text": "x"}, {"id": 1, "text": "y"}], r"items\.jsonl:2: another item in line 1 is called '1' too"),
    ],
)
def test_items_that_cannot_be_read_are_named(corpus, tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        contamination(jsonl(tmp_path / "items.jsonl", lines), corpus)


def test_words_of_scripts_with_and_without_spaces():
    assert words_of("Don't stop_here, ２０２６!") == ["don", "t", "stop", "here", "2026"]
    assert words_of("稲妻はGPUで") == ["稲", "妻", "は", "gpu", "で"]


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """A corpus ten times larger takes no more memory at its peak."""
    words = random.Random(0)
    jsonl(tmp_path / "items.jsonl", [{"id": str(n), "text": text(words, 30)} for n in range(20)])
    peaks = []
    for documents in (60, 600):
        path = jsonl(tmp_path / f"{documents}.jsonl", [{"text": text(words, 300)} for _ in range(documents)])
        tracemalloc.start()
        contamination(tmp_path / "items.jsonl", path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_it_needs_no_pytorch():
    program = "import sys, inazuma.evaluate.contamination, inazuma.evaluate.overlap; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
