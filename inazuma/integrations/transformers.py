"""The `deepseek_v32` and `glm_moe_dsa` models of Hugging Face transformers, with the operators of inazuma inside.

    import inazuma.integrations.transformers as it

    it.enable()
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="inazuma")

After `enable()` "inazuma" is also what a model of the two families takes when it is made without `attn_implementation`;
one that exists already takes it by `model.set_attn_implementation("inazuma")`. Every other model, and one made with
"sdpa" or "eager", stays as it was. The logits are those of transformers up to rounding; where scores tie exactly, ours
keeps the earlier token and transformers any. Caches, `generate()`, left and right padding and packed `position_ids`
work as they do there, but no tensor of queries x keys is made. A mask that is no span of tokens a query, attention
weights and dropout are refused.

In transformers the indexer runs without gradients. Here each forward pass in training mode also computes what teaches
it, and `index_loss(model)` returns that. With the Trainer:

    class SparseTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            if model.training:
                # The Trainer adds up the losses of the passes that make up one step.
                loss = loss + it.index_loss(model) / self.current_gradient_accumulation_steps
            return (loss, outputs) if return_outputs else loss

Neither loss reaches the other's parameters, so no weight has to be found between them; the Trainer's clipping, though,
is by the norm of all gradients together. An indexer without parameters that require gradients costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inazuma.errors import UserError

try:
    from transformers import AttentionInterface, AttentionMaskInterface

    from inazuma.integrations.transformers_attention import FAMILIES, NAME, Family, attend, losses, spans
except ImportError as error:
    raise UserError(f"transformers 5.17 or later is needed: pip install 'inazuma[transformers]' ({error})") from error

_replaced: list[tuple[type, str, Any]] = []
"""What `enable` replaced: class, name, and what the class itself had there (None: it inherited)."""


def enable() -> None:
    """Makes "inazuma" an `attn_implementation` of the two families, and their default. Again does nothing more."""
    if _replaced:
        return
    AttentionInterface.register(NAME, _refuse_other_models)
    AttentionMaskInterface.register(NAME, spans)
    for family in FAMILIES:
        _replace(family.attention, "forward", _forward(family, family.attention.forward))
        choose = family.pretrained.get_correct_attn_implementation
        _replace(family.pretrained, "get_correct_attn_implementation", _default_to_inazuma(choose))


def disable() -> None:
    """Undoes `enable`. A model that still has "inazuma" says so when it is run."""
    while _replaced:
        owner, name, original = _replaced.pop()
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
    AttentionInterface._global_mapping.pop(NAME, None)
    # It stays registered, for it is the first thing that such a model runs into.
    AttentionMaskInterface.register(NAME, _refuse_disabled)


def _replace(owner: type, name: str, new: Callable) -> None:
    _replaced.append((owner, name, vars(owner).get(name)))
    setattr(owner, name, new)


def _default_to_inazuma(choose: Callable) -> Callable:
    @functools.wraps(choose)
    def chosen(self: nn.Module, requested_attention: str | None, *args: Any, **kwargs: Any) -> str:
        return choose(self, requested_attention or NAME, *args, **kwargs)

    return chosen


def _forward(family: Family, original: Callable) -> Callable:
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> tuple:
        if self.config._attn_implementation != NAME:
            return original(self, *args, **kwargs)
        return attend(family, self, *args, **kwargs)

    return forward


def _refuse_disabled(*args: Any, **kwargs: Any) -> None:
    raise UserError(f"attn_implementation: {NAME!r} needs inazuma.integrations.transformers.enable()")


def _refuse_other_models(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    model = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
    raise UserError(f"attn_implementation: {NAME!r} is for deepseek_v32 and glm_moe_dsa, not {model}")


def index_loss(model: nn.Module) -> Tensor:
    """What teaches the indexers of `model`: the sum over them of KL(target || softmax(scores)), in nats a query.

    The target is the attention that the indexer serves, mean over its heads, on the tokens selected (DeepSeek-V3.2,
    arXiv 2512.02556, equation 4). For an indexer that several layers share it is the mean of the KLs to each of them,
    which has the same gradient as the KL to the mean of their distributions (IndexCache, arXiv 2603.12201). Only the
    parameters of indexers get gradients; padding does not count.

    Call it once after a forward pass in training mode, before the next one.

    Returns:
        a scalar in float32.

    Raises:
        UserError: no layer of `model` has such a loss.
    """
    served: list[list[Tensor]] = []
    for layer in model.modules():
        if isinstance(layer, tuple(family.attention for family in FAMILIES)):
            if layer.indexer is not None:
                served.append([])
            if (loss := losses.pop(layer, None)) is not None:
                served[-1].append(loss)
    means = [torch.stack([loss.to(ours[0].device) for loss in ours]).mean() for ours in served if ours]
    if not means:
        raise UserError(
            "index_loss: there is none: it needs a forward pass in training mode with attn_implementation='inazuma', "
            "gradients, indexers that require them, and no gradient checkpointing with use_reentrant=True"
        )
    return torch.stack([mean.to(means[0].device) for mean in means]).sum()
