"""Training the small Transformer on a task: examples packed into rows, and only the answers are learnt."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

import inazuma
from inazuma.data.batches import IGNORE, Batch
from inazuma.data.tokenizer import END_OF_TEXT, Sample, save_tokenizer, train_tokenizer
from inazuma.errors import UserError
from inazuma.model import ModelConfig, Transformer
from inazuma.rightsize.generative import ARROW, Codec, Generative, compute_device
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task
from inazuma.train.recipe import OptimizerConfig, Stage, TrainConfig
from inazuma.train.step import TrainStep

# cuBLAS repeats its sums only with a workspace of fixed size, and reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

Pair = tuple[list[int], list[int]]
"""The tokens of a prompt and of its answer."""

FROM_SCRATCH = [{"lr": 3e-3, "epochs": 1.0}, {"lr": 1e-3, "epochs": 1.0}, {"lr": 3e-3, "epochs": 0.33}]
FROM_CHECKPOINT = [{"lr": 3e-4, "epochs": 1.0}, {"lr": 1e-3, "epochs": 1.0}, {"lr": 3e-4, "epochs": 0.33}]
"""What the tuning tries, in this order; `epochs` is a share of the task's."""


def labels_of(task: Task, examples: Sequence[Example]) -> list[str] | None:
    """The labels a model may answer with; None where answers are free."""
    return sorted({example.target for example in examples}) if task.kind == "classification" else None


def new_model(task: Task, examples: Sequence[Example], folder: Path) -> Transformer:
    """An untrained model of the task's shape, with a tokenizer of its training texts, which is kept in `folder`."""
    shape = task.transformer
    sample = Sample()
    for example in examples:
        text = example.text + ARROW + example.target
        sample.offer(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big"), text, len(text.encode()))
    tokenizer = train_tokenizer(sample, shape.vocab_size, or_fewer=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, END_OF_TEXT, folder, given=None)
    heads = max(1, shape.hidden_size // 32)
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        intermediate_size=3 * shape.hidden_size,
        num_attention_heads=heads,
        attention="gqa",
        num_key_value_heads=heads,
        head_dim=32,
        rope_interleave=False,
        index_topk=None,  # texts of a task are short: nothing to select from
        rope_theta=1000.0,
        max_position_embeddings=shape.context,
    )
    model = Transformer(config).init_weights(task.seed).to(compute_device())
    model.tokenizer_folder = folder
    return model


def from_checkpoint(folder: Path) -> Transformer:
    """A model to go on training, in float32."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: not a model folder (it has no config.json)")
    return inazuma.load(folder, dtype=torch.float32, device=compute_device())


def room_for(codec: Codec, targets: Sequence[str]) -> int:
    """Tokens of the longest answer; a UserError where it leaves no room for the text."""
    room = max(len(codec.answer(target)) for target in set(targets))
    if room > codec.context // 2:
        raise UserError(
            f"an answer of {room} tokens leaves no room for its text in a context of {codec.context}; raise "
            "transformer.context"
        )
    return room


def fit(model: Transformer, task: Task, examples: Sequence[Example], trial: dict[str, Any]) -> Generative:
    """Trains `model` in place with a trial's learning rate and epochs, and returns it as an answerer."""
    context = min(task.transformer.context, model.config.max_position_embeddings)
    codec = Codec.of(model, context)
    targets = [example.target for example in examples]
    room = room_for(codec, targets)
    pairs = [(codec.prompt(e.text, room), codec.answer(e.target)) for e in examples]
    rows = max(1, task.transformer.batch_tokens // context)
    steps = steps_of(task, pairs, rows * context, trial["epochs"])
    sparse = model.config.index_topk is not None
    stage = Stage(
        stage="sparse" if sparse else "dense", tokens=1, lr=trial["lr"], schedule="cosine", warmup=0.1, final_lr=0.05
    )
    recipe = TrainConfig(
        data=Path("-"),
        model=replace(model.config, index_topk=min(model.config.index_topk, context)) if sparse else model.config,
        stages=(stage,),
        context=context,
        batch_tokens=rows * context,
        rows_at_once=rows,
        optimizer=OptimizerConfig(matrices="adamw", weight_decay=0.1),
        mtp_weight=0.0 if model.config.num_nextn_predict_layers else None,
    )
    batches = Batches(pairs, rows, context, codec.end, task.seed)
    with repeatable(model.lm_head.weight.device):
        trainer = TrainStep(model, recipe)
        for step in range(steps):
            trainer.step(batches.next(), stage, (step + 0.5) / steps)
    return Generative(model, task, labels_of(task, examples), context, room)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Sums in an order of their own on a GPU too, where many have none otherwise and weights differ from run to run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def steps_of(task: Task, pairs: Sequence[Pair], batch_tokens: int, share: float) -> int:
    """Optimizer steps: the epochs asked for, within the task's budget of tokens."""
    once = sum(len(prompt) + len(answer) - 1 for prompt, answer in pairs)
    return max(20, math.ceil(min(once * task.transformer.epochs, task.transformer.tokens) * share / batch_tokens))


class Batches:
    """An endless stream of batches: each epoch has every example once, in an order of its own."""

    def __init__(self, pairs: Sequence[Pair], rows: int, context: int, end: int, seed: int):
        self.pairs, self.rows, self.context, self.end = pairs, rows, context, end
        self.random = np.random.RandomState(seed)  # its stream is frozen for good
        self.waiting: list[int] = []

    def next(self) -> Batch:
        """Rows filled one after another with whole examples, each of which sees only itself."""
        batch = Batch.padding(self.rows, self.context, self.end)
        for row in range(self.rows):
            used = 0
            while True:
                if not self.waiting:
                    self.waiting = self.random.permutation(len(self.pairs)).tolist()
                prompt, answer = self.pairs[self.waiting[-1]]
                ids = prompt + answer
                length = len(ids) - 1
                if used + length > self.context:
                    break
                place = self.waiting.pop()
                here = slice(used, used + length)
                batch.ids[row, here] = ids[:-1]
                batch.targets[row, here] = [IGNORE] * (len(prompt) - 1) + answer
                batch.first[row, here] = used
                batch.document[row, here] = place
                used += length
        return batch
