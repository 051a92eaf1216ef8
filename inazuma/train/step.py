"""One optimizer step: the model, its losses, and how both move the weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inazuma.data.batches import IGNORE, Batch
from inazuma.errors import RunError
from inazuma.model import Transformer
from inazuma.model.moe import Imbalance, imbalance
from inazuma.train.optimizer import build_optimizers, is_index_parameter, set_learning_rate
from inazuma.train.recipe import Stage, TrainConfig


class StepResult(NamedTuple):
    loss: float
    """Mean negative log-likelihood of the batch's targets, nats a token."""
    index_loss: list[float] | None
    """Each layer's KL, nats a query; None where no indexer learns."""
    mtp_loss: list[float] | None
    """Each multi-token prediction's mean negative log-likelihood, nats a token; None where none is trained."""
    grad_norm: float
    lr: float
    imbalance: dict[int, Imbalance]
    """How unevenly each mixture of experts shared out the batch's tokens, by layer."""


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats, float32 `[B,T]`; 0 where the target is to be ignored."""
    logits, targets = logits_BTV.flatten(0, 1).float(), targets_BT.flatten()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none").view_as(targets_BT)


def targets_ahead(targets_BT: Tensor, first_BT: Tensor, depth: int) -> Tensor:
    """What the `depth`-th layer for multi-token prediction is to predict at each position: the target of the position
    `depth` further on. `IGNORE` where that lies behind the row or in another document, or is itself to be ignored."""
    depth = min(depth, targets_BT.shape[1])
    targets = F.pad(targets_BT[:, depth:], (0, depth), value=IGNORE)
    begins = F.pad(first_BT[:, depth:], (0, depth), value=targets_BT.shape[1])
    here = torch.arange(targets_BT.shape[1], device=targets_BT.device)
    return torch.where(begins <= here, targets, IGNORE)


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids, targets and first of a batch as tensors."""
    return tuple(torch.from_numpy(x).to(device) for x in (batch.ids, batch.targets, batch.first))


class TrainStep:
    """A model with its optimizers. It knows how to take a step; when, and on what, is the trainer's business."""

    def __init__(self, model: Transformer, config: TrainConfig):
        self.model, self.config = model, config
        self.device = next(model.parameters()).device
        self.mixtures = model.mixtures()
        self.index_weights = torch.tensor(model.config.index_loss_weights(), device=self.device)
        self.optimizers = build_optimizers(model, config.optimizer)
        named = list(model.named_parameters())
        self.learners = {
            "model": [p for name, p in named if not is_index_parameter(name)],
            "indexer": [p for name, p in named if is_index_parameter(name)],
        }

    def autocast(self) -> torch.autocast:
        """bfloat16 where the recipe asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def step(self, batch: Batch, stage: Stage, progress: float) -> StepResult:
        """Moves the weights once by `batch`, whose targets all weigh the same however it is cut into passes.

        Raises:
            RunError: a loss or gradient is not finite; the message names the layer. The weights are then untouched.
        """
        indexes = self.model.config.index_topk is not None and (stage.stage != "dense" or stage.train_indexer)
        self._choose_learners(stage, indexes)
        self.model.train()
        targets = int((batch.targets != IGNORE).sum())
        ahead = self._targets_ahead(batch)
        loss, mtp_loss = torch.zeros((), device=self.device), torch.zeros(len(ahead), device=self.device)
        layers = self.model.config.num_hidden_layers + len(ahead)
        index_loss = torch.zeros(layers, device=self.device) if indexes else None
        rows = len(batch.ids)
        for start in range(0, rows, self.config.rows_at_once):
            piece = batch.rows(start, min(start + self.config.rows_at_once, rows))
            ids, target_ids, first = to_device(piece, self.device)
            balance: list[Tensor] | None = [] if self.mixtures and self.model.config.scoring_func == "softmax" else None
            with self.autocast():
                logits, piece_index, predictions = self._forward(ids, first, stage, indexes, balance)
                piece_loss = token_losses(logits, target_ids).sum() / targets
                piece_mtp = [
                    token_losses(x, goals[start : start + len(ids)]).sum() / (goals != IGNORE).sum().clamp(min=1)
                    for x, goals in zip(predictions, ahead, strict=True)
                ]
            total = piece_loss
            if ahead:
                mtp_loss += torch.stack(piece_mtp).detach()
                total = total + self.config.prediction_weight * torch.stack(piece_mtp).mean()
            if indexes:
                piece_index = piece_index * (len(piece.ids) / rows)
                index_loss += piece_index.detach()
                # In the warm-up the language-model loss has nobody to teach.
                index_total = (piece_index * self.index_weights[: len(piece_index)]).sum()
                total = index_total if stage.stage == "warmup" else total + index_total
            if balance and stage.stage != "warmup":
                total = total + self.config.balance_loss * torch.stack(balance).mean() * (len(piece.ids) / rows)
            total.backward()
            loss += piece_loss.detach()
        norms = {
            role: torch.nn.utils.get_total_norm(x.grad for x in parameters if x.grad is not None)
            for role, parameters in self.learners.items()
        }
        losses = (loss, mtp_loss, *([index_loss] if indexes else []))
        if not all(torch.isfinite(x).all() for x in (*losses, *norms.values())):
            where = self.first_non_finite(batch, stage, indexes)
            self.zero_grad()
            raise RunError(f"the loss or a gradient is not finite, first in {where}")
        for role, parameters in self.learners.items():
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optimizer.clip, norms[role])
        lr = set_learning_rate(self.optimizers, stage, progress)
        for optimizer in self.optimizers:
            optimizer.step()
        self.zero_grad()
        norm = norms["indexer" if stage.stage == "warmup" else "model"]
        index_losses = None if index_loss is None else index_loss.tolist()
        mtp_losses = mtp_loss.tolist() if ahead else None
        return StepResult(float(loss), index_losses, mtp_losses, float(norm), lr, self._balance(stage))

    def _balance(self, stage: Stage) -> dict[int, Imbalance]:
        """Moves the experts' biases by this step's load, which is then forgotten, and says how uneven it was."""
        # A layer for multi-token prediction that does not learn is not run.
        counted = {layer: mixture for layer, mixture in self.mixtures.items() if mixture.load().any()}
        uneven = {layer: imbalance(mixture.load()) for layer, mixture in counted.items()}
        biased = stage.stage != "warmup" and self.model.config.scoring_func == "sigmoid"
        for mixture in counted.values():
            mixture.update_balance(self.config.balance_speed if biased else 0.0)
        return uneven

    def _targets_ahead(self, batch: Batch) -> list[Tensor]:
        """The targets of each layer for multi-token prediction; none if they are not to learn."""
        depths = self.model.config.num_nextn_predict_layers if self.config.prediction_weight else 0
        _, targets, first = to_device(batch, self.device)
        return [targets_ahead(targets, first, depth) for depth in range(1, depths + 1)]

    def _forward(
        self, ids: Tensor, first: Tensor, stage: Stage, indexes: bool, balance: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Logits, index loss and the logits of multi-token prediction, as far as they are to learn."""
        predicts = self.config.prediction_weight > 0
        asked = {"output_index_loss": indexes, "output_predictions": predicts, "balance": balance}
        output = self.model(ids, first=first, stage=stage.stage, **asked)
        logits, *more = output if isinstance(output, tuple) else (output,)
        return logits, more[0] if indexes else None, more[-1] if predicts else []

    def zero_grad(self) -> None:
        """Forgets the gradients. None rather than zero: who gets no gradient is left alone, weight decay included."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _choose_learners(self, stage: Stage, indexes: bool) -> None:
        for role, parameters in self.learners.items():
            learns = stage.stage != "warmup" if role == "model" else indexes
            for parameter in parameters:
                parameter.requires_grad_(learns)

    def first_non_finite(self, batch: Batch, stage: Stage, indexes: bool) -> str:
        """The first module whose output is not finite on `batch`, else the last whose parameters' gradient is not."""
        found: list[str] = []

        def watch(name: str):
            def hook(module, inputs, output):
                tensors = [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]
                if not found and not all(torch.isfinite(x).all() for x in tensors):
                    found.append(name)

            return hook

        leaves = [(name, module) for name, module in self.model.named_modules() if name and not list(module.children())]
        hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
        try:
            with torch.no_grad(), self.autocast():
                for start in range(0, len(batch.ids), self.config.rows_at_once):
                    ids, _, first = to_device(batch.rows(start, start + self.config.rows_at_once), self.device)
                    self._forward(ids, first, stage, indexes)
                    if found:
                        return f"the output of {found[0]}"
        finally:
            for hook in hooks:
                hook.remove()
        # A backward pass goes from the last layer to the first, so the last bad gradient came first.
        bad = [n for n, p in self.model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        return f"the gradient of {bad[-1]}" if bad else "the loss"
