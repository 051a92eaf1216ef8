"""A causal language model as an answerer: it reads the text and an arrow, and writes the answer.

Where the answers are labels, it can write nothing else: of the tokens that some label begins with it takes the most
probable, and so on until one label is left (what a server does that is held to a list of choices).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import inazuma
from inazuma.errors import UserError
from inazuma.files import read_json, write_json
from inazuma.model import Transformer
from inazuma.model.checkpoint import write_model
from inazuma.model.text import tokenizer_of
from inazuma.rightsize.predictor import RUNG, Answer, write_kind
from inazuma.rightsize.table import canonical
from inazuma.rightsize.task import Task

ARROW = "\n=> "
"""Between text and answer."""
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content | trim }}{% endfor %}{{ '\\n=> ' }}"
"""The chat template that makes a chat message the text: the served model answers as it was trained to."""
_BATCH = 32


def compute_device() -> torch.device:
    """Where models learn and answer: on a GPU if there is one, as everywhere in this project."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Codec:
    """Texts and answers as tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, begin: int | None, end: int, context: int):
        self.tokenizer, self.begin, self.end, self.context = tokenizer, begin, end, context
        self.arrow = self.encode(ARROW)

    @classmethod
    def of(cls, model: Transformer, context: int) -> Codec:
        stop = model.config.stop_ids
        if not stop:
            raise UserError("the model's config names no eos_token_id, so no answer of it would end")
        return cls(tokenizer_of(model), model.config.bos_token_id, min(stop), context)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str, room: int) -> list[int]:
        """The tokens before the answer, at most `context - room`: the middle of a longer text is left out."""
        begin = [] if self.begin is None else [self.begin]
        ids = self.encode(text.strip())
        most = max(self.context - room - len(begin) - len(self.arrow), 2)
        if len(ids) > most:
            ids = ids[: most - most // 2] + ids[len(ids) - most // 2 :]
        return [*begin, *ids, *self.arrow]

    def answer(self, target: str) -> list[int]:
        return [*self.encode(target), self.end]


class Generative:
    """A model with the task it was trained for. `room` is the longest answer in tokens; `labels` are all there are, or
    None where the answer is free text or JSON."""

    def __init__(self, model: Transformer, task: Task, labels: list[str] | None, context: int, room: int):
        self.model, self.task, self.labels, self.context, self.room = model.eval(), task, labels, context, room
        self.codec = Codec.of(model, context)

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(texts)
        prompts = [self.codec.prompt(text, self.room) for text in texts]
        # Like lengths together: the padding stays short.
        order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                chosen = order[start : start + _BATCH]
                rows = [prompts[i] for i in chosen]
                found = self._labels(rows) if self.labels is not None else self._texts(rows)
                for i, answer in zip(chosen, found, strict=True):
                    answers[i] = answer
        return [answer for answer in answers if answer is not None]

    def _labels(self, rows: list[list[int]]) -> list[Answer]:
        spelt = {label: self.codec.answer(label) for label in self.labels}
        written: list[list[int]] = [[] for _ in rows]
        nats = [0.0] * len(rows)
        left = [list(spelt) for _ in rows]
        while waiting := [i for i in range(len(rows)) if len(left[i]) > 1]:
            logits = self._next([rows[i] + written[i] for i in waiting])
            for i, row in zip(waiting, logits, strict=True):
                depth = len(written[i])
                allowed = sorted({spelt[label][depth] for label in left[i]})
                scores = row[allowed].double().log_softmax(0)
                best = int(scores.argmax())
                nats[i] += float(scores[best])
                written[i].append(allowed[best])
                left[i] = [label for label in left[i] if spelt[label][depth] == allowed[best]]
        return [
            Answer(labels[0], float(torch.tensor(x).exp()), len(row), len(spelt[labels[0]]))
            for labels, x, row in zip(left, nats, rows, strict=True)
        ]

    def _next(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits of the token after each row, float32 `[rows, vocab_size]` on the CPU."""
        ids = torch.full((len(rows), max(map(len, rows))), self.codec.end, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        hidden = self.model.read(ids.to(self.device))[0]
        ends = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        last = hidden[torch.arange(len(rows), device=self.device), ends]
        return self.model.lm_head(last).float().cpu()

    def _texts(self, rows: list[list[int]]) -> list[Answer]:
        written = self.model.generate(rows, self.room, stop={self.codec.end})
        answers = []
        for row, whole in zip(rows, written, strict=True):
            new = whole[len(row) :]
            text = self.codec.tokenizer.decode(new, skip_special_tokens=True)
            ids = torch.tensor([whole], device=self.device)
            logits = self.model(ids)[0, len(row) - 1 : len(whole) - 1].float().cpu()
            chosen = logits.log_softmax(-1)[torch.arange(len(new)), torch.tensor(new, dtype=torch.long)]
            confidence = float(chosen.mean().exp()) if new else 0.0
            answers.append(Answer(readable(self.task, text), confidence, len(row), len(new)))
        return answers

    def save(self, folder: Path) -> None:
        """A model folder that `inazuma serve` serves: a chat message is the text, the reply is the answer."""
        write_model(self.model, folder)
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        write_json(folder / "tokenizer_config.json", settings | {"chat_template": TEMPLATE})
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        task = {name: getattr(self.task, name) for name in ("kind", "schema", "fold_case")}
        write_kind(folder, "generative", task=task, labels=self.labels, context=self.context, room=self.room)

    @classmethod
    def load(cls, folder: Path) -> Generative:
        kept: dict[str, Any] = read_json(folder / RUNG)
        task = Task(data=Path("-"), **kept["task"])
        model = inazuma.load(folder, dtype=torch.float32, device=compute_device())
        return cls(model, task, kept["labels"], kept["context"], kept["room"])


def readable(task: Task, text: str) -> str | None:
    """What a model wrote in its canonical form; None where it is none of the task's answers."""
    text = text.strip()
    if task.kind == "generation":
        return text
    if task.kind == "classification":
        return text.casefold() if task.fold_case else text
    try:
        return canonical(task, json.loads(text), "answer")
    except ValueError:  # no JSON, or a UserError: JSON that is not the schema's
        return None
