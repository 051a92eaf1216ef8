"""The small answerer for free text: the answer of the most similar training text, by TF-IDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from inazuma.files import read_json, write_json
from inazuma.rightsize.linear import load_vectorizer, save_vectorizer
from inazuma.rightsize.predictor import RUNG, Answer, write_kind

CHOICES = [
    {"analyzer": "word", "ngram_range": [1, 2]},
    {"analyzer": "char_wb", "ngram_range": [1, 4]},
    {"analyzer": "word", "ngram_range": [1, 1]},
]


class Nearest:
    def __init__(self, vectorizer: TfidfVectorizer, known: csr_matrix, targets: list[str]):
        self.vectorizer, self.known, self.targets = vectorizer, known, targets

    @classmethod
    def fit(cls, texts: Sequence[str], targets: Sequence[str], choice: dict[str, Any]) -> Nearest:
        vectorizer = TfidfVectorizer(analyzer=choice["analyzer"], ngram_range=tuple(choice["ngram_range"]))
        return cls(vectorizer, vectorizer.fit_transform(texts), list(targets))

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        # The rows have length 1, so that products are cosines.
        similar = (self.vectorizer.transform(texts) @ self.known.T).toarray()
        best = similar.argmax(axis=1)
        return [Answer(self.targets[i], float(row[i])) for i, row in zip(best, similar, strict=True)]

    def save(self, folder: Path) -> None:
        kept = save_vectorizer(self.vectorizer, folder)
        write_kind(folder, "nearest", vectorizer=kept, shape=list(self.known.shape))
        write_json(folder / "targets.json", self.targets)
        matrix = {"data": self.known.data, "indices": self.known.indices, "indptr": self.known.indptr}
        save_file({**matrix, "idf": self.vectorizer.idf_}, folder / "nearest.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Nearest:
        kept, tensors = read_json(folder / RUNG), load_file(folder / "nearest.safetensors")
        vectorizer = load_vectorizer(kept["vectorizer"], folder, tensors["idf"])
        known = csr_matrix((tensors["data"], tensors["indices"], tensors["indptr"]), shape=tuple(kept["shape"]))
        return cls(vectorizer, known, read_json(folder / "targets.json"))
