"""When things happen: stages, logging, validation, checkpoints, interruption, resumption."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from inazuma.config import from_dict, to_dict
from inazuma.data.batches import evaluation_windows, training_windows
from inazuma.data.shards import Dataset
from inazuma.errors import RunError, UserError
from inazuma.files import atomic_folder
from inazuma.model import Transformer
from inazuma.model.checkpoint import write_model
from inazuma.runs.run import Run
from inazuma.train import state
from inazuma.train.recipe import Stage, TrainConfig
from inazuma.train.step import TrainStep
from inazuma.train.validate import document_losses, selection_qualities

SELECTION_ROWS = 4
"""Validation rows on which the indexers' selections are judged."""


class Interrupted(Exception):
    """Somebody asked the training to stop; it saved a checkpoint and can be resumed."""


class Trainer:
    """Carries out a recipe in a run folder. Make one with `start` or `resume`, then call `train`.

    The run folder holds `metrics.jsonl` (a line a step, a line a validation), `tensorboard/`, `checkpoints/` and, when
    all is done, `model/`.
    """

    def __init__(self, config: TrainConfig, run: Run, dataset: Dataset):
        self.config, self.run, self.dataset = config, run, dataset
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = Transformer(config.model).init_weights(config.seed).to(device)
        model.tokenizer_folder = dataset.path
        self.train_step = TrainStep(model, config)
        self.step = 0
        self.total_steps = config.stage_ends()[-1]
        self._stop = threading.Event()

    @classmethod
    def start(cls, config: TrainConfig, path: Path, *, command: Sequence[str], force: bool = False) -> Trainer:
        """Begins a new run at `path`.

        Raises:
            UserError: the data do not fit the recipe, or `path` exists (without `force`). Nothing is written then.
        """
        dataset = open_dataset(config)
        run = Run.create(
            path,
            command=list(command),
            config=to_dict(config),
            seeds={"seed": config.seed},
            inputs={"data": dataset.fingerprint},
            force=force,
        )
        return cls(config, run, dataset)

    @classmethod
    def resume(cls, path: Path, *, config: TrainConfig | None = None) -> Trainer:
        """Goes on with the run at `path` from its newest checkpoint (from the beginning where there is none yet).

        Raises:
            UserError: no run, a finished run, another corpus, another `config` than the run began with.
        """
        run = Run.open(path)
        if run.manifest["status"] == "finished":
            raise UserError(f"{path}: this run is finished; nothing is left to resume")
        recorded = from_dict(TrainConfig, run.manifest["config"], where=str(path / "manifest.json"))
        if config is not None and config != recorded:
            field = first_difference(to_dict(recorded), to_dict(config))
            raise UserError(f"{path}: began with another configuration: {field}; start a new run for it")
        dataset = open_dataset(recorded)
        if dataset.fingerprint != run.manifest["inputs"]["data"]:
            raise UserError(f"{recorded.data}: is another corpus than the one that {path} began with")
        state.sweep(path)
        trainer = cls(recorded, run, dataset)
        found = state.checkpoints(path)
        if found:
            trainer.step = state.load_checkpoint(found[-1], trainer.train_step)
        run.truncate_metrics(lambda line: line["step"] <= trainer.step)
        run.resumed(step=trainer.step)
        return trainer

    def train(self, watch: Callable[[dict[str, Any]], None] | None = None, *, stop_at: int | None = None) -> None:
        """Trains to the end of the recipe, or until `stop_at` steps are done.

        `watch` is called with every line that goes to `metrics.jsonl`.

        Raises:
            Interrupted: by SIGINT or SIGTERM or at `stop_at`, after a checkpoint was saved.
            RunError: a loss that is not finite, a disk that is full; the last good checkpoint is untouched.
        """
        board = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step + 1)

        def record(line: dict[str, Any]) -> None:
            self.run.metric(**line)
            for name, value in line.items():
                values = {f"/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {"": value}
                for suffix, x in values.items():
                    if isinstance(x, float):
                        board.add_scalar(f"{line['kind']}/{name}{suffix}", x, line["step"])
            if watch is not None:
                watch(line)

        try:
            with self._signals():
                self._loop(record, stop_at)
            self._write_final_model()
            self.run.finish("finished")
        except Interrupted as interruption:
            self.run.finish("interrupted", error=str(interruption))
            raise
        except OSError as error:
            self.run.finish("failed", error=str(error))
            raise RunError(f"step {self.step}: {error}") from None
        except Exception as error:
            self.run.finish("failed", error=str(error))
            raise
        finally:
            board.close()

    def _loop(self, record: Callable[[dict[str, Any]], None], stop_at: int | None) -> None:
        config, ends = self.config, self.config.stage_ends()
        while self.step < self.total_steps:
            if self._stop.is_set() or self.step == stop_at:
                self._checkpoint()
                raise Interrupted(f"stopped after step {self.step} of {self.total_steps}")
            stage, progress = config.stage_at(self.step)
            began = time.perf_counter()
            batch = training_windows(
                self.dataset.train,
                context=config.context,
                position=self.step * config.rows,
                count=config.rows,
                seed=config.seed,
            )
            try:
                result = self.train_step.step(batch, stage, progress)
            except RunError as error:
                documents = np.unique(batch.document[batch.document >= 0])
                sources = [self.dataset.train.source(int(document)) for document in documents]
                kept = state.checkpoints(self.run.path)
                raise RunError(
                    f"step {self.step + 1}: {error}. Documents of the batch: {', '.join(sources[:8])}"
                    f"{f' and {len(sources) - 8} more' if len(sources) > 8 else ''}. "
                    f"Last good checkpoint: {kept[-1] if kept else 'none yet'}"
                ) from None
            self.step += 1
            seconds = time.perf_counter() - began
            line = {
                "kind": "train",
                "step": self.step,
                "tokens": self.step * config.batch_tokens,
                "stage": stage.stage,
                "loss": result.loss,
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                "tokens_per_second": config.batch_tokens / seconds,
            }
            if result.index_loss is not None:
                line["index_loss"] = result.index_loss
            if result.imbalance:
                line["max_violation"] = [one.max_violation for one in result.imbalance.values()]
                line["idle_experts"] = [one.idle for one in result.imbalance.values()]
            if result.mtp_loss is not None:
                line["mtp_loss"] = result.mtp_loss
            record(line)
            at_end = self.step in ends
            if at_end or self.step % config.validate_every == 0:
                record(self._validate(stage))
                for layer, one in result.imbalance.items():
                    if one.idle > COLLAPSED:
                        record({"kind": "warning", "step": self.step, "message": collapse(layer, one.idle)})
            if at_end or self.step % config.checkpoint_every == 0:
                self._checkpoint()

    def _validate(self, stage: Stage) -> dict[str, Any]:
        config, model = self.config, self.train_step.model
        windows = {"context": config.context, "max_tokens": config.validation_tokens}
        batches = evaluation_windows(self.dataset.validation, rows=config.rows_at_once, **windows)
        attends = "frozen" if stage.stage == "sparse" else "dense"
        autocast = self.train_step.autocast
        losses = document_losses(model, self.dataset.validation, batches, stage=attends, autocast=autocast)
        line = {
            "kind": "validation",
            "step": self.step,
            "tokens": self.step * config.batch_tokens,
            "stage": stage.stage,
            "bits_per_byte": losses.bits_per_byte,
        }
        if config.model.index_topk is not None:
            batch = next(iter(evaluation_windows(self.dataset.validation, rows=SELECTION_ROWS, **windows)))
            attends = "frozen" if stage.stage == "sparse" else "warmup"
            layers = selection_qualities(model, batch, stage=attends, autocast=autocast)
            line["recall_at_k"] = [layer.recall for layer in layers]
            line["attention_mass"] = [layer.mass for layer in layers]
        return line

    def _checkpoint(self) -> None:
        state.save_checkpoint(self.run.path, self.step, self.train_step, keep=self.config.keep_checkpoints)

    def _write_final_model(self) -> None:
        path = self.run.path / "model"
        if not path.exists():  # a kill between this and the run's end finds it written already
            with atomic_folder(path) as folder:
                write_model(self.train_step.model, folder)

    @contextmanager
    def _signals(self):
        """The first SIGINT or SIGTERM ends the training after the step at hand; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number, frame):
            self._stop.set()
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


COLLAPSED = 0.5
"""Share of a layer's experts that get no token of a whole batch from which on its router is reported."""


def collapse(layer: int, idle: float) -> str:
    """What is said of a router that sends all tokens to a few experts."""
    return (
        f"layer {layer}: {idle:.0%} of the experts got no token in this step, so the router has collapsed; raise "
        "balance_speed (sigmoid scores) or balance_loss (softmax scores), or lower the learning rate"
    )


def open_dataset(config: TrainConfig) -> Dataset:
    """The recipe's data, checked against its model.

    Raises:
        UserError: missing or damaged data, or a vocabulary that the model cannot hold.
    """
    dataset = Dataset.open(config.data)
    if config.model.vocab_size < dataset.vocab_size:
        raise UserError(
            f"model.vocab_size: is {config.model.vocab_size}, but the tokenizer of {config.data} has "
            f"{dataset.vocab_size} tokens; set it to at least that"
        )
    if config.model.eos_token_id != dataset.end_of_text:
        raise UserError(
            f"model.eos_token_id: is {config.model.eos_token_id}, but <|endoftext|> of {config.data} is "
            f"{dataset.end_of_text}; set it to that"
        )
    return dataset


def first_difference(a: Any, b: Any, where: str = "") -> str:
    """The first field in which two configurations differ, and both values."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            if a.get(key) != b.get(key):
                return first_difference(a.get(key), b.get(key), f"{where}.{key}" if where else key)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return first_difference(x, y, f"{where}.{place}")
    return f"{where} was {a!r}, now {b!r}"
