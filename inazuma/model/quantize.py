"""Weights in int8 or int4, on the CPU: less memory and more speed, for a loss that is measured.

int8 (FBGEMM, in PyTorch): a scale for each output; the inputs of a layer are made int8 too, with one scale for all of
them, so that what a token gets depends, by rounding, on the tokens that are computed with it. int4 (ATen): a scale and
a zero point for every `GROUP` weights of an output, inputs as they are: fast for a few tokens, slow for many, half the
memory. Embeddings, logits, routers, indexers, norms and `kv_b_proj`, which is used as a matrix, stay as they are.
"""

from __future__ import annotations

import math
import time
import warnings
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

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")

GROUP = 32
"""Weights of an output that share a scale in int4."""

WHOLE = ("lm_head", "kv_b_proj")
"""Linear layers that are never quantised, and all of an indexer besides."""


def is_quantized(name: str, module: nn.Module) -> bool:
    """Whether `quantize` replaces this module of a `Transformer`, as far as its own kind goes; experts apart."""
    return isinstance(module, nn.Linear) and not name.endswith(WHOLE) and ".indexer." not in name


class _Packed(nn.Module):
    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        raise UserError("a quantised model cannot be saved; its folder has the weights that it was made from")


class Int8Linear(_Packed):
    """y = x W^T + b with W in int8, symmetric, a scale for each row, and x in int8, a scale for all of it."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None):
        super().__init__()
        weight_NK = weight_NK.detach().float()
        scale = (weight_NK.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        with warnings.catch_warnings():  # PyTorch announces that its quantised tensors will move to another package
            warnings.simplefilter("ignore")
            weight = torch.quantize_per_channel(
                weight_NK, scale.double(), torch.zeros_like(scale).long(), 0, torch.qint8
            )
            self.packed = torch.ops.quantized.linear_prepack(
                weight, None if bias_N is None else bias_N.detach().float()
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(x.float(), self.packed).to(x.dtype)


class Int4Linear(_Packed):
    """y = x W^T + b with W in int4: 15 steps from the least to the greatest weight of each group."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None):
        super().__init__()
        groups = weight_NK.detach().float().unflatten(1, (-1, GROUP))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-8)
        steps = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).flatten(1)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 2)
        # A step s means (s - 8) * scale + zero.
        self.scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
        self.bias = None if bias_N is None else bias_N.detach()

    @staticmethod
    def takes(weight_NK: Tensor) -> bool:
        """Whether the kernel knows matrices of this shape."""
        return weight_NK.shape[0] % 16 == 0 and weight_NK.shape[1] % GROUP == 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(torch.bfloat16)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales).to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class QuantizedExperts(_Packed):
    """`moe.Experts`, each with weights of its own in int8 or int4."""

    def __init__(self, experts: Experts, kind: Kind):
        super().__init__()
        stacks = zip(experts.gate_proj, experts.up_proj, experts.down_proj, strict=True)
        self.experts = [tuple(pack(weight, None, kind) for weight in expert) for expert in stacks]

    def forward(self, x_SE: Tensor, experts_SK: Tensor) -> Tensor:
        """What each token's experts make of it, `[S,K,E]`."""
        return by_expert(x_SE, experts_SK, len(self.experts), self._transform)

    def _transform(self, x_PE: Tensor, ends_N: Tensor) -> Tensor:
        y_PE, start = torch.empty_like(x_PE), 0
        for end, (gate, up, down) in zip(ends_N.tolist(), self.experts, strict=True):
            if end > start:
                x = x_PE[start:end]
                y_PE[start:end] = down(F.silu(gate(x)) * up(x))
            start = end
        return y_PE


def pack(weight_NK: Tensor, bias_N: Tensor | None, kind: Kind) -> Int8Linear | Int4Linear:
    """A linear layer of these weights. Shapes that the int4 kernel does not take (outputs not in sixteens, inputs not
    in whole groups) become int8."""
    return (Int4Linear if kind == "int4" and Int4Linear.takes(weight_NK) else Int8Linear)(weight_NK, bias_N)


@torch.no_grad()
def quantize(model: Transformer, kind: Kind) -> Transformer:
    """Replaces the model's linear layers and experts, layer by layer; it generates but learns no more.

    Raises:
        UserError: an unknown kind, a model that is not on the CPU, or a PyTorch without these kernels.
    """
    if kind not in KINDS:
        raise UserError(f"quantize: {kind!r} is not known, only {' and '.join(KINDS)}")
    device = next(model.parameters()).device.type
    if device != "cpu":
        raise UserError(f"quantize: {kind} works on the CPU only, and the model is on {device!r}")
    if not {"x86", "fbgemm"} & {*torch.backends.quantized.supported_engines}:
        raise UserError("quantize: this PyTorch has no FBGEMM, which comes with it on x86-64 only")
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts):
            model.set_submodule(name, QuantizedExperts(module, kind))
        elif is_quantized(name, module):
            model.set_submodule(name, pack(module.weight, module.bias, kind))
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
