"""Whether evaluation items stood in the training data, and the scores on those that did and on those that did not.

For a model that was trained here this is decided by looking: its run's manifest names the corpus by its fingerprint,
and the corpus is at hand. Where either is missing nothing is said of items in which nothing was found: that they were
trained on cannot be told from a model's answers (arXiv 2410.18966 found such tests little better than chance).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from inazuma.data.corpus import find_corpus
from inazuma.data.shards import FORMAT, Dataset
from inazuma.errors import UserError
from inazuma.evaluate.overlap import SHORTEST, ItemIndex
from inazuma.files import read_json
from inazuma.runs.intervals import Interval, bootstrap_mean, wilson
from inazuma.runs.lines import read_lines
from inazuma.runs.run import Run

State = Literal["overlap", "near duplicate", "clean", "not decidable"]
NO_EVIDENCE = ("infrastructure_error", "invalid_item")
"""Outcomes that say nothing about the model; they are left out of the scores."""
LIMITS = "paraphrases and translations are not found"
_BATCH = 256


@dataclass(frozen=True)
class Item:
    """An evaluation item as its line gives it."""

    name: str
    text: str
    cluster: str
    score: float | None
    """None where the line has none, or its outcome says nothing about the model."""


@dataclass(frozen=True)
class ItemResult:
    """What the training data have of one item."""

    name: str
    state: State
    why: str
    covered: float
    """Share of the item's words that stand in the data in overlaps."""
    documents: int
    """How many documents hold an overlap or a near duplicate."""
    places: tuple[dict[str, Any], ...]
    """The first of them: document, source, words of the item, the text there, share of the trigrams."""


@dataclass(frozen=True)
class Score:
    """The mean score of a part of the items, with its 95 % interval: Wilson's for independent 0 and 1, else a bootstrap
    over clusters. No interval where there is one cluster only."""

    items: int
    mean: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Contamination:
    """The whole answer."""

    decided: bool
    """Whether these data are all that the model was trained on: only then an item is called clean."""
    why: str
    data: dict[str, Any]
    items: tuple[ItemResult, ...]
    scores: dict[State, Score]
    limits: str = LIMITS


def contamination(items: Path, data: Path | None, *, run: Path | None = None) -> Contamination:
    """Looks for the items of a JSON lines file in training data.

    An item's text is its `text`, or else its `prompt` and, where it is text, its `target`. `data` is a folder that
    `inazuma data build` wrote (its training split is searched) or text in any form that can be built; None where
    nobody has it. `run` is the training run of the model: where its manifest names just these data, an item that is not
    found is clean, otherwise it is not decidable.

    Raises `UserError` for items or data that cannot be read.
    """
    read = list(_read_items(items))
    index = ItemIndex([item.text for item in read])
    facts: dict[str, Any] = {"documents": 0, "words": 0, "fingerprint": None}
    if data is not None:
        if _is_dataset(data):
            facts["fingerprint"] = Dataset.open(data).fingerprint
        for number, (source, text) in enumerate(_documents(data)):
            facts["words"] += index.scan(number, source, text)
            facts["documents"] = number + 1
    decided, why = _decided(data, facts["fingerprint"], run)
    results = []
    for item, found in zip(read, index.found, strict=True):
        state: State = "clean" if decided else "not decidable"
        reason = "" if decided else why
        if found.overlaps:
            state, reason = "overlap", f"{int(found.covered.sum())} of {found.words} words in a row"
        elif found.near:
            share = max(place.share for place in found.near)
            state, reason = "near duplicate", f"{share:.0%} of the trigrams of a piece in one window"
        elif not found.decidable:
            state, reason = "not decidable", f"{found.words} words; {SHORTEST} are the least"
        covered = float(found.covered.mean()) if found.words else 0.0
        places = tuple(vars(place) for place in (*found.overlaps, *found.near))
        results.append(ItemResult(item.name, state, reason, covered, found.documents, places))
    return Contamination(decided, why, facts, tuple(results), _scores(read, results))


def _read_items(path: Path) -> Iterator[Item]:
    seen: dict[str, tuple[int, str]] = {}
    number = 0
    for number, line in enumerate(read_lines(path), start=1):
        text = _text_of(line, f"{path}:{number}")
        name = str(line.get("id", line.get("item", number)))
        if "task" in line:
            name = f"{line['task']}/{name}"
        # An item may have been tried several times; it is the same item only where it says the same.
        before, said = seen.setdefault(name, (number, text))
        if said != text:
            raise UserError(f"{path}:{number}: another item in line {before} is called {name!r} too")
        score = line.get("score")
        counts = isinstance(score, int | float) and line.get("outcome") not in NO_EVIDENCE
        cluster = name if line.get("cluster") is None else str(line["cluster"])
        yield Item(name, text, cluster, float(score) if counts else None)
    if not number:
        raise UserError(f"{path}: has no items")


def _text_of(line: Mapping[str, Any], where: str) -> str:
    prompt = line.get("text", line.get("prompt"))
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        prompt = "\n".join(str(message.get("content") or "") for message in prompt)
    if not isinstance(prompt, str):
        raise UserError(f"{where}: the line has no text: neither 'text' nor 'prompt'")
    target = line.get("target")
    return f"{prompt}\n{target}" if "text" not in line and isinstance(target, str) else prompt


def _is_dataset(data: Path) -> bool:
    manifest = Path(data) / "manifest.json"
    if not manifest.is_file():
        return False
    facts = read_json(manifest)
    return isinstance(facts, dict) and facts.get("format") == FORMAT


def _documents(data: Path) -> Iterator[tuple[str, str]]:
    """(where it came from, text) of every training document, a few in memory at a time."""
    if not _is_dataset(data):
        corpus = find_corpus([data])
        for document in corpus.documents("text", Counter()):
            path = corpus.sources[document.source].path
            yield (f"{path}:{document.line}" if document.line else str(path)), document.text
        return
    dataset = Dataset.open(data)
    tokenizer, split = Tokenizer.from_file(str(dataset.tokenizer_path)), dataset.train
    for first in range(0, split.documents, _BATCH):
        numbers = range(first, min(first + _BATCH, split.documents))
        # A document's first token is the marker.
        bounds = [(int(split.document_start[n]) + 1, int(split.document_start[n + 1])) for n in numbers]
        ids = [split.read(start, stop).tolist() for start, stop in bounds]
        texts = tokenizer.decode_batch(ids, skip_special_tokens=False)
        yield from zip(map(split.source, numbers), texts, strict=True)


def _decided(data: Path | None, fingerprint: str | None, run: Path | None) -> tuple[bool, str]:
    if data is None:
        return False, "nobody here has the training data"
    if run is None:
        return False, "no run says that these were the model's training data"
    inputs = Run.open(run).manifest.get("inputs", {})
    if fingerprint is None or fingerprint not in inputs.values():
        return False, f"{run} was trained on other data: {_short(inputs)}, these are {fingerprint or 'plain text'}"
    if len(inputs) > 1:
        return False, f"{run} read more than these data: {_short(inputs)}"
    return True, f"{run} was trained on these data and on nothing else"


def _short(inputs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value[:12]}" for name, value in inputs.items()) or "nothing that it names"


def _scores(items: Sequence[Item], results: Sequence[ItemResult]) -> dict[State, Score]:
    parts: dict[State, list[Item]] = {}
    for item, result in zip(items, results, strict=True):
        parts.setdefault(result.state, []).append(item)
    return {state: _score(part) for state, part in parts.items()}


def _score(items: Sequence[Item]) -> Score:
    scored = [item for item in items if item.score is not None]
    if not scored:
        return Score(len(items), None, None)
    values = np.array([item.score for item in scored])
    clusters = [item.cluster for item in scored]
    count, mean = len(set(clusters)), float(values.mean())
    if count == len(scored) and set(values.tolist()) <= {0.0, 1.0}:
        return Score(len(items), mean, wilson(float(values.sum()), len(values)))
    return Score(len(items), mean, None if count == 1 else bootstrap_mean(values, clusters, seed=0))
