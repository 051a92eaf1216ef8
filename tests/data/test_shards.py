from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from inazuma.data.shards import Dataset
from inazuma.errors import UserError

SHARD = "train.tokens-00001.bin"


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_reading_crosses_shard_files(dataset):
    shards = dataset.manifest["splits"]["train"]["shards"]
    stream = np.concatenate([np.fromfile(dataset.path / shard, dtype="<u2") for shard in shards])
    assert len(stream) == dataset.train.tokens and len(np.fromfile(dataset.path / shards[0], dtype="<u2")) == 1000
    for start, stop in [
        (0, 0),
        (0, 1),
        (999, 1001),
        (1000, 2000),
        (500, 3500),
        (0, len(stream)),
        (len(stream), len(stream)),
    ]:
        ids = dataset.train.read(start, stop)
        assert ids.dtype == np.int64 and np.array_equal(ids, stream[start:stop])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 10**9)])
def test_reading_outside_the_stream_is_an_error(dataset, start, stop):
    with pytest.raises(IndexError):
        dataset.train.read(start, stop)


def test_a_dataset_may_be_moved(dataset, copy):
    moved = Dataset.open(copy, verify=True)
    assert moved.fingerprint == dataset.fingerprint == dataset.manifest["fingerprint"]
    assert moved.validation.read(0, 50).tolist() == dataset.validation.read(0, 50).tolist()
    assert moved.train.source(3) == dataset.train.source(3)


@pytest.mark.parametrize("name", [SHARD, "validation.document_start.bin", "tokenizer.json", "sources.json"])
def test_missing_truncated_and_changed_files_are_named(copy, name):
    path = copy / name
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(UserError, match=f"{name}: its content has changed"):
        Dataset.open(copy, verify=True)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"{name}: has {len(content) - 1} bytes instead of {len(content)}"):
        Dataset.open(copy)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: missing; .*build the dataset again"):
        Dataset.open(copy)


def test_ids_outside_the_vocabulary_are_found_when_read(copy):
    path = copy / SHARD
    ids = np.fromfile(path, dtype="<u2")
    ids[7] = 40_000
    ids.tofile(path)
    split = Dataset.open(copy).train
    assert len(split.read(0, 1007)) == 1007
    with pytest.raises(UserError, match=f"{SHARD}: holds token id 40000, the vocabulary has 300"):
        split.read(0, 1008)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.pop("format"), "not the manifest of a prepared dataset"),
        (lambda manifest: manifest.update(version=99), "version 99 of the format, this program reads 1"),
        (lambda manifest: manifest.pop("splits"), "damaged"),
        (lambda manifest: manifest["splits"]["train"].update(tokens=5), "damaged"),
        (lambda manifest: manifest["splits"]["validation"].update(documents=5), "damaged"),
        (lambda manifest: manifest.update(dtype="nonsense"), "damaged"),
        (lambda manifest: manifest.update(files=[]), "damaged"),
        (lambda manifest: manifest["files"][SHARD].update(sha256="0"), "hashes do not give its fingerprint"),
    ],
)
def test_a_damaged_manifest_is_named(copy, change, message):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}") as caught:
        Dataset.open(copy)
    assert "\n" not in str(caught.value)


def test_other_folders_are_no_dataset(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="not a prepared dataset"):
            Dataset.open(path)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(UserError, match=r"manifest\.json: not valid JSON"):
        Dataset.open(tmp_path)
