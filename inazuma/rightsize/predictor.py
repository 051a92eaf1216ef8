"""What every rung is in the end: something that answers texts, kept in a folder and loaded from there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from inazuma.errors import UserError
from inazuma.files import read_json, write_json
from inazuma.rightsize.energy import Joules

RUNG = "rung.json"
_KINDS = {
    "majority": "inazuma.rightsize.majority.Majority",
    "linear": "inazuma.rightsize.linear.LinearText",
    "tagger": "inazuma.rightsize.tagger.Tagger",
    "nearest": "inazuma.rightsize.nearest.Nearest",
    "embedding": "inazuma.rightsize.embedding.Embedded",
    "generative": "inazuma.rightsize.generative.Generative",
    "prompted": "inazuma.rightsize.prompted.Asked",
    "cascade": "inazuma.rightsize.cascade.Cascade",
}


class Answer(NamedTuple):
    """An answer in its canonical form; None where the model gave none that can be read."""

    text: str | None
    confidence: float
    """How sure the model is, in [0, 1]."""
    input_tokens: int = 0
    output_tokens: int = 0
    milliseconds: float | None = None
    """How long it took, where that was measured with it."""
    stop_reason: str | None = None
    """Why it ended, where somebody said so: "length" is an answer that was cut off."""
    joules: Joules | None = None
    """What it drew, where that was counted with it."""


class Predictor(Protocol):
    def answer(self, texts: Sequence[str]) -> list[Answer]:
        """An answer for each text."""
        ...

    def save(self, folder: Path) -> None:
        """Writes everything that `load` needs into an empty folder."""
        ...


def write_kind(folder: Path, kind: str, **facts: object) -> None:
    """Notes which predictor lies in `folder`."""
    write_json(folder / RUNG, {"kind": kind, **facts})


def load(folder: Path | str) -> Predictor:
    """The model that `inazuma rightsize` left in a folder: `load("runs/task/model").answer(["a text"])`.

    Raises:
        UserError: no such folder, or not one of these.
    """
    folder = Path(folder)
    kind = read_json(folder / RUNG).get("kind")
    if kind not in _KINDS:
        raise UserError(f"{folder / RUNG}: unknown kind {kind!r}")
    module, name = _KINDS[kind].rsplit(".", 1)
    return getattr(importlib.import_module(module), name).load(folder)
