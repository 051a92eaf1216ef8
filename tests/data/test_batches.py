"""Packing, held against plain loops over the documents' tokens."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from inazuma.data.batches import IGNORE, Batch, evaluation_windows, training_windows
from inazuma.data.shards import Dataset, Split
from inazuma.errors import UserError

FIELDS = ("ids", "targets", "first", "document")


def document_tokens(split: Split) -> list[list[int]]:
    stream = split.read(0, split.tokens).tolist()
    return [stream[start:stop] for start, stop in zip(split.document_start, split.document_start[1:], strict=False)]


def assert_well_formed(batch: Batch, end_of_text: int) -> None:
    """Types, padding, and `first` by walking each row back to where its document begins."""
    shape = batch.ids.shape
    assert [(getattr(batch, name).dtype, getattr(batch, name).shape) for name in FIELDS] == [
        (np.dtype(kind), shape) for kind in ("int64", "int64", "int32", "int64")
    ]
    for row in range(shape[0]):
        first = 0
        for column in range(shape[1]):
            document = batch.document[row, column]
            if document == -1:
                assert batch.ids[row, column] == end_of_text and batch.targets[row, column] == IGNORE
                first = column
            elif column and document != batch.document[row, column - 1]:
                assert batch.ids[row, column] == end_of_text
                first = column
            assert batch.first[row, column] == first


def targets_by_document(batches: list[Batch]) -> dict[int, list[int]]:
    found = defaultdict(list)
    for batch in batches:
        for document, target in zip(batch.document.flat, batch.targets.flat, strict=True):
            if document >= 0:
                found[int(document)].append(int(target))
    return found


@pytest.mark.parametrize("context", [1, 7, 64, 1000, 10**5])
def test_an_epoch_reads_every_window_of_the_stream_once(dataset: Dataset, context: int):
    split = dataset.train
    windows = -(-split.tokens // context)
    stream = [*split.read(0, split.tokens).tolist(), dataset.end_of_text]
    expected = sorted(tuple(stream[start : start + context + 1]) for start in range(0, split.tokens, context))
    for epoch in (0, 1):
        batch = training_windows(split, context=context, position=epoch * windows, count=windows, seed=3)
        assert_well_formed(batch, dataset.end_of_text)
        real = batch.targets != IGNORE
        assert np.array_equal(real, batch.document >= 0) and real.sum() == split.tokens
        rows = [(batch.ids[row][real[row]].tolist(), batch.targets[row][real[row]].tolist()) for row in range(windows)]
        assert all(ids[1:] == targets[:-1] for ids, targets in rows)
        assert sorted((*ids, targets[-1]) for ids, targets in rows) == expected


def test_in_an_epoch_each_document_is_predicted_once_with_its_end(dataset: Dataset):
    split, context = dataset.train, 64
    windows = -(-split.tokens // context)
    rows = [training_windows(split, context=context, position=row, count=1, seed=0) for row in range(windows)]
    found = targets_by_document(rows)
    for document, tokens in enumerate(document_tokens(split)):
        assert sorted(found[document]) == sorted([*tokens[1:], dataset.end_of_text])


def test_training_rows_are_a_function_of_seed_and_position_alone(dataset: Dataset):
    split, windows = dataset.train, -(-dataset.train.tokens // 32)
    options = {"context": 32, "seed": 5}
    start = windows - 3  # across the end of an epoch
    together = training_windows(split, position=start, count=6, **options)
    for row in range(6):
        alone = training_windows(split, position=start + row, count=1, **options)
        assert all(np.array_equal(getattr(alone, name)[0], getattr(together, name)[row]) for name in FIELDS)
    again = training_windows(Dataset.open(dataset.path).train, position=start, count=6, **options)
    assert all(np.array_equal(getattr(again, name), getattr(together, name)) for name in FIELDS)
    orders = [
        training_windows(split, context=32, position=position, count=windows, seed=seed).ids.tobytes()
        for position, seed in [(0, 5), (windows, 5), (0, 6)]
    ]
    assert len(set(orders)) == 3


def test_the_training_order_is_pinned(dataset: Dataset):
    """What NumPy documents as frozen; were it to change, a resumed run would read other text without a word."""
    bits = np.random.MT19937(np.random.SeedSequence([5, 0]))
    assert np.random.RandomState(bits).permutation(10).tolist() == [5, 9, 3, 0, 4, 1, 7, 2, 6, 8]
    windows = -(-dataset.train.tokens // 1000)
    order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([5, 0]))).permutation(windows)
    batch = training_windows(dataset.train, context=1000, position=0, count=windows, seed=5)
    for row, window in enumerate(order):
        ids = dataset.train.read(window * 1000, min(window * 1000 + 1000, dataset.train.tokens))
        assert batch.ids[row, : len(ids)].tolist() == ids.tolist()


@pytest.mark.parametrize(("context", "rows"), [(5, 1), (64, 4), (4096, 2)])
def test_evaluation_predicts_every_document_once_in_order_with_its_end(dataset: Dataset, context: int, rows: int):
    split = dataset.validation
    batches = list(evaluation_windows(split, context=context, rows=rows, max_tokens=None))
    assert all(batch.ids.shape == (rows, context) for batch in batches)
    for batch in batches:
        assert_well_formed(batch, dataset.end_of_text)
    flat = np.concatenate([batch.document.ravel() for batch in batches])
    assert (flat >= 0).sum() == split.tokens and np.all(flat[: split.tokens] >= 0)  # padding only at the end
    ids = np.concatenate([batch.ids.ravel() for batch in batches])
    found = targets_by_document(batches)
    for document, tokens in enumerate(document_tokens(split)):
        assert ids[flat == document].tolist() == tokens
        assert found[document] == [*tokens[1:], dataset.end_of_text]
    order = list(found)
    assert sorted(order) == list(range(split.documents)) != order


def test_evaluation_stops_before_the_document_that_would_pass_the_limit(dataset: Dataset):
    split = dataset.validation
    lengths = np.diff(split.document_start)

    def selected(max_tokens: int | None) -> list[int]:
        return list(targets_by_document(list(evaluation_windows(split, context=32, rows=2, max_tokens=max_tokens))))

    order = selected(None)
    for limit in (int(lengths.max()), 500, 1500, split.tokens):
        expected, taken = [], 0
        for document in order:
            if lengths[document] > limit:
                continue
            if taken + lengths[document] > limit:
                break
            expected.append(document)
            taken += lengths[document]
        assert selected(limit) == expected and taken <= limit
    shortest = int(lengths.min())
    assert [int(lengths[document]) for document in selected(shortest)] == [shortest]
    with pytest.raises(UserError, match=f"as short as {shortest - 1} tokens"):
        selected(shortest - 1)
