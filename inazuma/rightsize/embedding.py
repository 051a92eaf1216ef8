"""Static embeddings (model2vec) under a logistic regression: a text is the mean of its tokens' vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from model2vec import StaticModel
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

from inazuma.errors import UserError
from inazuma.files import read_json
from inazuma.rightsize.linear import fit_regression, label_answers, label_probabilities, regression
from inazuma.rightsize.predictor import RUNG, Answer, write_kind
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task

CHOICES = [{"C": 10.0}, {"C": 1.0}, {"C": 100.0}]


class Embedded:
    def __init__(self, static: StaticModel, model: LogisticRegression, scale: np.ndarray, several: bool):
        self.static, self.model, self.scale, self.several = static, model, scale, several

    @classmethod
    def fit(cls, task: Task, examples: Sequence[Example], choice: dict[str, Any]) -> Embedded:
        static = static_model(task.embedding)
        features = _features(static, [example.text for example in examples])
        scale = features.std(axis=0) + 1e-6
        several = task.kind == "multi-label"
        targets = [example.target for example in examples]
        model = fit_regression(features / scale, targets, choice["C"], seed=task.seed, several=several)
        return cls(static, model, scale, several)

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        features = _features(self.static, texts) / self.scale
        names = [str(name) for name in self.model.classes_]
        return label_answers(names, label_probabilities(self.model, features, self.several), self.several)

    def save(self, folder: Path) -> None:
        write_kind(folder, "embedding", several=self.several, classes=[str(name) for name in self.model.classes_])
        self.static.save_pretrained(folder / "static")
        tensors = {"coef": self.model.coef_, "intercept": self.model.intercept_, "scale": self.scale}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "head.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Embedded:
        kept, tensors = read_json(folder / RUNG), load_file(folder / "head.safetensors")
        model = regression(kept["classes"], tensors["coef"], tensors["intercept"])
        return cls(StaticModel.from_pretrained(folder / "static"), model, tensors["scale"], kept["several"])


def _features(static: StaticModel, texts: Sequence[str]) -> np.ndarray:
    return static.encode(list(texts), use_multiprocessing=False).astype(np.float64)


def static_model(folder: Path) -> StaticModel:
    """The embeddings in a folder as model2vec writes it, or the token embeddings of a language model.

    Raises:
        UserError: it is neither.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() or not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no static embeddings (expected config.json, tokenizer.json and safetensors)")
    if read_json(folder / "config.json").get("model_type") == "model2vec":
        return StaticModel.from_pretrained(folder)
    import inazuma

    weight = inazuma.load(folder).model.embed_tokens.weight
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return StaticModel(vectors=weight.detach().float().numpy(), tokenizer=tokenizer, normalize=True)
