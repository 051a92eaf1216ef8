"""Weights in int8 or int4, on the CPU: less memory and more speed, for a loss that is measured.

int8: a scale for each output. int4: a scale and a zero point for every 32 weights of an output. The inputs of a
layer become int8 in both, with scales for groups of each token's, so that what a token gets does not depend on the
tokens beside it (`inazuma.ops.packed`). The output layer is int8 in both; embeddings, routers, indexers, norms and
`kv_b_proj`, which is used as a matrix, stay as they are. A tied output layer leaves the embeddings their own table.
"""

from __future__ import annotations

import math
import time
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.errors import UserError
from inazuma.model.cache import Cache
from inazuma.model.generate import prefill
from inazuma.model.moe import Experts, by_expert
from inazuma.model.text import tokenizer_of
from inazuma.model.transformer import Transformer
from inazuma.ops.packed import pack, silu_mul

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")


HEAD = "lm_head"
"""Always int8: a layer that every token reads whole, and whose rounding no later layer evens out."""


def quantized_kind(name: str, module: nn.Module, kind: Kind) -> Kind | None:
    """What `quantize` makes this module of a `Transformer`, experts apart; None for what stays as it is."""
    if not isinstance(module, nn.Linear) or name.endswith("kv_b_proj") or ".indexer." in name:
        return None
    return "int8" if name == HEAD else kind


class _Unsaved(nn.Module):
    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        raise UserError("a quantised model cannot be saved; its folder has the weights that it was made from")


class PackedLinear(_Unsaved):
    """`inazuma.ops.packed.pack` in place of a linear layer, for inputs of any float dtype."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, kind: Kind):
        super().__init__()
        self.packed = pack(weight_NK, bias_N, kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x.detach().float().contiguous()).to(x.dtype)


class QuantizedExperts(_Unsaved):
    """`moe.Experts`, each with weights of its own in int8 or int4."""

    def __init__(self, experts: Experts, kind: Kind):
        super().__init__()
        stacks = zip(experts.gate_proj, experts.up_proj, experts.down_proj, strict=True)
        self.experts = [(pack(torch.cat([gate, up]), None, kind), pack(down, None, kind)) for gate, up, down in stacks]

    def forward(self, x_SE: Tensor, experts_SK: Tensor) -> Tensor:
        """What each token's experts make of it, `[S,K,E]`."""
        return by_expert(x_SE.detach(), experts_SK, len(self.experts), self._transform)

    def _transform(self, x_PE: Tensor, ends_N: Tensor) -> Tensor:
        x, y, start = x_PE.float(), torch.empty(x_PE.shape), 0
        for end, (gate_up, down) in zip(ends_N.tolist(), self.experts, strict=True):
            if end > start:
                down(silu_mul(gate_up(x[start:end])), out=y[start:end])
            start = end
        return y.to(x_PE.dtype)


@torch.no_grad()
def quantize(model: Transformer, kind: Kind) -> Transformer:
    """Replaces the model's linear layers and experts, layer by layer; it generates but learns no more.

    Raises:
        UserError: an unknown kind, a model that is not on the CPU, a weight that is not finite.
    """
    if kind not in KINDS:
        raise UserError(f"quantize: {kind!r} is not known, only {' and '.join(KINDS)}")
    device = next(model.parameters()).device.type
    if device != "cpu":
        raise UserError(f"quantize: {kind} works on the CPU only, and the model is on {device!r}")
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            model.set_submodule(name, QuantizedExperts(module, kind))
        elif (own := quantized_kind(name, module, kind)) is not None:
            model.set_submodule(name, PackedLinear(module.weight, module.bias, own))
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# What it costs and what it gains
# ---------------------------------------------------------------------------------------------------------------------


class Quality(NamedTuple):
    """One model on one text."""

    bits_per_byte: float
    prefill: float
    """Tokens a second, reading the text."""
    decode: float
    """Tokens a second, writing one at a time."""


@torch.inference_mode()
def quality(model: Transformer, text: str, *, context: int = 512, new: int = 32) -> Quality:
    """How well the model foresees a text, and how fast it is.

    The text is read in pieces of `context` tokens that do not see each other; its first token, which nothing foretells
    in a model without a beginning-of-text token, counts nothing.

    Raises:
        UserError: a model without tokenizer, or a text of fewer than two tokens.
    """
    config = model.config
    ids = tokenizer_of(model).encode(text, add_special_tokens=False).ids
    begin = [] if config.bos_token_id is None else [config.bos_token_id]
    context = min(context, config.max_position_embeddings - new)
    if len(ids) < 2:
        raise UserError("quality: the text must have at least two tokens")
    nats, step = 0.0, context - len(begin)
    pieces = [torch.tensor([begin + ids[start : start + step]]) for start in range(0, len(ids), step)]
    model(pieces[0][:, :8])  # what is done but once is not timed
    started = time.perf_counter()
    for piece in pieces:
        logits = model(piece)[0, :-1].float()
        nats += float(F.cross_entropy(logits, piece[0, 1:], reduction="sum"))
    read = sum(piece.numel() for piece in pieces) / (time.perf_counter() - started)
    cache = Cache(1, pieces[0].shape[1] + new)
    token = prefill(model, pieces[0], torch.tensor([pieces[0].shape[1]]), cache).argmax(-1)
    started = time.perf_counter()
    for _ in range(new):
        token = model(token[:, None], cache=cache)[:, -1].argmax(-1)
    wrote = new / (time.perf_counter() - started)
    return Quality(nats / math.log(2) / len(text.encode()), read, wrote)
