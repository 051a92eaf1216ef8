"""The rungs: what each needs, what its tuning tries, and how it is trained. Imports of libraries wait until a rung is
climbed, so that what is not installed is missed only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inazuma.rightsize.predictor import Predictor
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.task import Task

Fit = Callable[[dict[str, Any], Path], Predictor]
"""Trains with one configuration; the folder is scratch space that stays until the rung is saved."""
NO_CHOICE: list[dict[str, Any]] = [{}]


@dataclass(frozen=True)
class Climb:
    """A rung ready to be climbed."""

    choices: list[dict[str, Any]]
    """The configurations of its search space, in the order in which the tuning tries them."""
    fit: Fit
    open: AbstractContextManager[Any]
    """What must be there while it answers, such as a server."""
    most_validated: int | None = None
    """Validation items that the tuning looks at, where each costs seconds."""


def obstacle(name: str, task: Task, done: Mapping[str, Any]) -> str | None:
    """Why a rung cannot be climbed, and how to add what it lacks; None if it can. `done`: rungs climbed so far."""
    if name == "embedding":
        if task.embedding is None:
            return "no static embeddings at hand; name a model2vec folder or a language model with embedding: FOLDER"
        if find_spec("model2vec") is None:
            return "model2vec is not installed; pip install 'inazuma[rightsize]' brings it"
        if task.kind not in ("classification", "multi-label"):
            return f"embeddings of whole texts do not answer kind: {task.kind}"
    if name == "pretrained" and task.checkpoint is None:
        return "no checkpoint at hand; name a model folder (inazuma train writes one) with checkpoint: FOLDER"
    if name == "lora":
        if task.lora is None:
            return "no model at hand to adapt; name a model folder with lora: FOLDER"
        if find_spec("peft") is None:
            return "peft is not installed; pip install 'inazuma[rightsize]' brings it"
    if name == "distilled":
        if task.unlabelled is None:
            return "no unlabelled texts at hand; name a file of them with unlabelled: FILE"
        if not set(done) - {"majority", "scratch"}:
            return "no teacher was climbed; its labels come from a larger rung"
    if name == "prompted" and task.prompted is None:
        return "no large model at hand; name one, prompted: {folder: ...}, {address: ..., model: ...} or {outputs: ...}"
    if name == "cascade" and len(set(done) - {"majority"}) < 2:
        return "fewer than two rungs to put in a row"
    return None


def prepare(name: str, task: Task, splits: Splits, out: Path, teacher: Path | None = None) -> Climb:
    """How to climb a rung (not the cascade, which is made of other rungs' answers)."""
    return _PREPARE[name](task, splits, out, teacher)


def _majority(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.majority import Majority

    return Climb(NO_CHOICE, lambda choice, scratch: Majority.fit(task, splits["train"]), nullcontext())


def _tfidf(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    train = splits["train"]
    texts, targets = [e.text for e in train], [e.target for e in train]
    if task.kind == "extraction":
        from inazuma.rightsize.tagger import CHOICES, Tagger

        return Climb(CHOICES, lambda choice, scratch: Tagger.fit(task, train, choice), nullcontext())
    if task.kind == "generation":
        from inazuma.rightsize.nearest import CHOICES, Nearest

        return Climb(CHOICES, lambda choice, scratch: Nearest.fit(texts, targets, choice), nullcontext())
    from inazuma.rightsize.linear import fit_linear, vectorizer_choices

    several = task.kind == "multi-label"
    return Climb(
        vectorizer_choices(),
        lambda choice, scratch: fit_linear(texts, targets, choice, seed=task.seed, several=several),
        nullcontext(),
    )


def _embedding(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.embedding import CHOICES, Embedded

    return Climb(CHOICES, lambda choice, scratch: Embedded.fit(task, splits["train"], choice), nullcontext())


def _scratch(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.training import FROM_SCRATCH, fit, new_model

    def train(choice: dict[str, Any], scratch: Path) -> Predictor:
        return fit(new_model(task, splits["train"], scratch), task, splits["train"], choice)

    return Climb(FROM_SCRATCH, train, nullcontext())


def _pretrained(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.training import FROM_CHECKPOINT, fit, from_checkpoint

    return Climb(
        FROM_CHECKPOINT,
        lambda choice, scratch: fit(from_checkpoint(task.checkpoint), task, splits["train"], choice),
        nullcontext(),
    )


def _lora(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.lora import CHOICES, fit_lora

    return Climb(CHOICES, lambda choice, scratch: fit_lora(task, splits["train"], choice), nullcontext())


def _distilled(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.distill import taught
    from inazuma.rightsize.training import FROM_SCRATCH, fit, new_model

    examples = taught(task, splits, teacher)

    def train(choice: dict[str, Any], scratch: Path) -> Predictor:
        return fit(new_model(task, examples, scratch), task, examples, choice)

    return Climb(FROM_SCRATCH, train, nullcontext())


def _prompted(task: Task, splits: Splits, out: Path, teacher: Path | None) -> Climb:
    from inazuma.rightsize.prompted import TUNED_ON, Asked, choices, serving

    endpoint: dict[str, str] = {}

    @contextmanager
    def opened() -> Iterator[None]:
        with serving(task.prompted, out) as where:
            endpoint.update(where)
            yield

    return Climb(
        choices(task),
        lambda choice, scratch: Asked.fit(task, splits["train"], choice, endpoint, out),
        opened(),
        most_validated=None if task.prompted.outputs else TUNED_ON,
    )


_PREPARE: dict[str, Callable[[Task, Splits, Path, Path | None], Climb]] = {
    "majority": _majority,
    "tfidf": _tfidf,
    "embedding": _embedding,
    "scratch": _scratch,
    "pretrained": _pretrained,
    "lora": _lora,
    "distilled": _distilled,
    "prompted": _prompted,
}
