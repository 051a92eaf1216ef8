"""Which parameter is moved by what: AdamW, and Muon for the layers' matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from inazuma.errors import UserError
from inazuma.model import Transformer
from inazuma.train.muon import Muon
from inazuma.train.recipe import OptimizerConfig, Stage

EMBEDDING = "model.embed_tokens.weight"


def is_index_parameter(name: str) -> bool:
    """Whether a parameter belongs to an indexer."""
    return ".indexer." in name


def build_optimizers(model: Transformer, config: OptimizerConfig) -> list[Optimizer]:
    """The optimizers over all of the model's parameters, each parameter in exactly one group.

    Every group carries `role` ("model" or "indexer") and `lr_factor`, from which `set_learning_rate` has its rate.
    """
    matrices: list[Tensor] = []
    groups: dict[tuple[str, float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        inside_layer = name.startswith("model.layers.") and parameter.dim() == 2
        special = is_index_parameter(name) or name.endswith(".mlp.gate.weight")
        if inside_layer and not special and config.matrices == "muon":
            matrices.append(parameter)
            continue
        role = "indexer" if is_index_parameter(name) else "model"
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        factor = config.embedding_lr_factor if name == EMBEDDING else 1.0
        groups.setdefault((role, decay, factor), []).append(parameter)
    adamw = AdamW(
        [
            {"params": params, "role": role, "weight_decay": decay, "lr_factor": factor}
            for (role, decay, factor), params in groups.items()
        ],
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    if not matrices:
        return [adamw]
    muon = Muon(
        [{"params": matrices, "role": "model", "lr_factor": 1.0}],
        lr=0.0,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return [adamw, muon]


def set_learning_rate(optimizers: list[Optimizer], stage: Stage, progress: float) -> float:
    """Sets every group's rate for a step at `progress` through `stage`; returns the model's."""
    factor = stage.lr_factor(progress)
    peak = {"model": stage.lr, "indexer": stage.lr if stage.index_lr is None else stage.index_lr}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = peak[group["role"]] * group["lr_factor"] * factor
    return stage.lr * factor


def optimizer_state(optimizers: list[Optimizer], model: Transformer) -> dict[str, Tensor]:
    """All optimizers' state as flat tensors, named `parameter/quantity`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{quantity}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for quantity, value in state.items()
    }


def load_optimizer_state(optimizers: list[Optimizer], model: Transformer, state: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_state` returned.

    Raises:
        UserError: the state is of other parameters.
    """
    parameters = dict(model.named_parameters())
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, value in state.items():
        name, quantity = key.rsplit("/", 1)
        if name not in parameters:
            raise UserError(f"the optimizer state has {name}, which this model has not: a checkpoint of another model")
        parameter = parameters[name]
        if value.dim() and value.shape != parameter.shape:
            raise UserError(f"the optimizer state of {name} is {list(value.shape)}, not {list(parameter.shape)}")
        # Counters stay where the optimizer keeps them; moments lie with their parameter.
        owner[id(parameter)].state[parameter][quantity] = value.to(parameter.device) if value.dim() else value.clone()
