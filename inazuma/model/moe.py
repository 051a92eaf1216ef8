"""A mixture of experts in place of a SwiGLU: router, experts, and what keeps the experts equally busy.

Every token goes to the experts it chose; none is ever dropped. Suffixes: B rows, T tokens of a row, S = B T tokens, K
experts of a token, P = S K pairs of a token and an expert, N experts, E width of the model, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.errors import UserError
from inazuma.model.config import ModelConfig
from inazuma.model.layers import TOKENS, SwiGLU, at_least_float32


class Routing(NamedTuple):
    experts: Tensor
    """int64 `[S,K]`: whom each token chose, best first."""
    weights: Tensor
    """At least float32 `[S,K]`: what each expert's output is multiplied by."""
    scores: Tensor
    """At least float32 `[S,N]`: what the weights come from, without the bias."""


class Router(nn.Module):
    """Each token's best experts, chosen as in DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) or, "softmax", as in Qwen3.

    All in float32, under autocast too. `e_score_correction_bias` (sigmoid only) has a part in the choice but not in the
    weights. Of equal scores the lower index wins, of groups and of experts alike; transformers leaves that open.
    """

    e_score_correction_bias: Tensor | None

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        nn.init.normal_(self.weight, std=config.initializer_range)
        sigmoid = config.scoring_func == "sigmoid"
        self.register_buffer("e_score_correction_bias", torch.zeros(len(self.weight)) if sigmoid else None)

    def forward(self, x_SE: Tensor) -> Routing:
        with torch.autocast(x_SE.device.type, enabled=False):
            logits = F.linear(at_least_float32(x_SE), at_least_float32(self.weight))
        return self.route(logits.softmax(-1) if self.e_score_correction_bias is None else logits.sigmoid())

    def route(self, scores: Tensor) -> Routing:
        """Whom tokens with these scores choose, `[S,N]`."""
        config, choice = self.config, scores.detach()
        if self.e_score_correction_bias is not None:
            choice = choice + self.e_score_correction_bias
        if config.n_group > 1:
            choice = self._within_best_groups(choice)
        experts = best(choice, config.num_experts_per_tok)
        weights = scores.gather(-1, experts)
        if config.norm_topk_prob:
            total = weights.sum(-1, keepdim=True)
            weights = weights / (total if self.e_score_correction_bias is None else total + 1e-20)
        return Routing(experts, weights * config.routed_scaling_factor, scores)

    def _within_best_groups(self, choice_SN: Tensor) -> Tensor:
        """-inf outside each token's best groups. A group counts for its best two experts; with "softmax", where nothing
        is biased, for its best one (DeepSeek-V2, arXiv 2405.04434, section 2.2.2)."""
        grouped = choice_SN.unflatten(-1, (self.config.n_group, -1))
        value = grouped.topk(1 if self.e_score_correction_bias is None else 2, sorted=True).values.sum(-1)
        kept = torch.zeros_like(value, dtype=torch.bool).scatter_(-1, best(value, self.config.topk_group), True)
        return grouped.masked_fill(~kept[..., None], -torch.inf).flatten(-2)

    def _apply(self, fn, recurse: bool = True):
        """`model.to(bfloat16)` leaves the bias in float32: steps of 0.001 would be lost in bfloat16."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if bias is not None and self.e_score_correction_bias.dtype.itemsize < 4:
            self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device, torch.float32)
        return self


def best(scores: Tensor, k: int) -> Tensor:
    """int64 `[...,k]`: where the k highest of the last dimension are, highest first, of equal ones the first first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]


class _TakeRows(torch.autograd.Function):
    """`x[index]`, whose gradient is gathered as well: no atomic additions, so always the same bits.

    `back [len(x), n]` says in which n rows of the result each row of x lies.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x[index]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (back,) = ctx.saved_tensors
        return grad[back].sum(1), None, None


def by_expert(x_SE: Tensor, experts_SK: Tensor, n: int, transform: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `transform` makes of each token for each of its experts, `[S,K,E]`.

    `transform` gets the pairs' tokens `[P,E]`, expert after expert, and int32 `[n]` where each expert's end; it
    returns a row for each.
    """
    order = experts_SK.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    ends = count(experts_SK, n).cumsum(0, dtype=torch.int32)
    x_PE = _TakeRows.apply(x_SE, order // experts_SK.shape[1], place.view_as(experts_SK))
    return _TakeRows.apply(transform(x_PE, ends), place, order[:, None]).unflatten(0, experts_SK.shape)


class Experts(nn.Module):
    """N SwiGLU networks whose weights lie in one tensor each."""

    def __init__(self, experts: int, hidden_size: int, intermediate_size: int, std: float):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, intermediate_size, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(experts, intermediate_size, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden_size, intermediate_size))
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)

    def forward(self, x_SE: Tensor, experts_SK: Tensor) -> Tensor:
        """What each token's experts make of it, `[S,K,E]`."""
        return by_expert(x_SE, experts_SK, len(self.gate_proj), self._transform)

    def _transform(self, x_PE: Tensor, ends_N: Tensor) -> Tensor:
        return self._grouped(x_PE, ends_N) if self.can_group(x_PE) else self._one_by_one(x_PE, ends_N)

    def _dtype(self) -> torch.dtype:
        """What products are computed in: as a linear layer's, the weights' type, or autocast's for float32 ones."""
        device, dtype = self.gate_proj.device.type, self.gate_proj.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            return torch.get_autocast_dtype(device)
        return dtype

    def can_group(self, x_PE: Tensor) -> bool:
        """Whether one call may multiply for all experts: rows of whole 16 bytes, in a type that `grouped_mm` knows.

        On a CPU that makes training 1.0 to 1.7 times as fast and inference about as fast; on a GPU only bfloat16 has
        a kernel. For few pairs it does not pay: a CPU is faster without, and all weights would be converted.
        """
        dtype, device = self._dtype(), x_PE.device.type
        if len(x_PE) < len(self.gate_proj) and (device == "cpu" or dtype != self.gate_proj.dtype):
            return False
        if any(width * dtype.itemsize % 16 for width in self.gate_proj.shape[1:]):
            return False
        if device == "cuda":
            return dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_PE.device) >= (8, 0)
        return device == "cpu" and dtype in (torch.float32, torch.bfloat16)

    def _grouped(self, x_PE: Tensor, ends_N: Tensor) -> Tensor:
        dtype = self._dtype()

        def multiply(x: Tensor, weight: Tensor) -> Tensor:
            return F.grouped_mm(x, weight.to(dtype).mT, offs=ends_N)

        x_PE = x_PE.to(dtype)
        hidden_PF = F.silu(multiply(x_PE, self.gate_proj)) * multiply(x_PE, self.up_proj)
        return multiply(hidden_PF, self.down_proj)

    def _one_by_one(self, x_PE: Tensor, ends_N: Tensor) -> Tensor:
        # Unbound at once: the gradient of indexing one expert would be as large as that of all.
        weights = zip(self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind(), strict=True)
        outputs, start = [], 0
        for end, (gate, up, down) in zip(ends_N.tolist(), weights, strict=True):
            if end > start:
                x = x_PE[start:end]
                outputs.append(F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))
            start = end
        return torch.cat(outputs) if outputs else x_PE


class MixtureOfExperts(nn.Module):
    """sum over a token's experts of weight * expert(x), plus shared_experts(x).

    In training it counts the tokens of every expert, and the trainer keeps them balanced: with sigmoid scores by
    `update_balance` after each step of the optimizer; with softmax scores, which have no bias, by adding
    `output_aux_loss`'s loss to the model's, times a coefficient (0.01 in Switch Transformer). There is no expert
    parallelism and no capacity that tokens are dropped for or padded to. Whoever recomputes activations counts their
    tokens twice.
    """

    tokens_per_expert: Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, std = config.moe_intermediate_size, config.initializer_range
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, config.hidden_size, width, std)
        self.shared_experts = (
            SwiGLU(config.hidden_size, config.n_shared_experts * width) if config.n_shared_experts else None
        )
        # No checkpoint has it, so it must have a value even where a model is built without memory ("meta").
        counts = torch.zeros(config.n_routed_experts, dtype=torch.int64, device="cpu")
        self.register_buffer("tokens_per_expert", counts, persistent=False)

    def forward(self, x: Tensor, *, output_aux_loss: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            x: `[B,T,E]`.
            output_aux_loss: also return `balance_loss` of these tokens' routing.

        Returns:
            `[B,T,E]` in x's type, or (that, loss) with `output_aux_loss`.
        """
        x_SE = x.flatten(0, -2)
        routing = self.gate(x_SE)
        counts = self.training and torch.is_grad_enabled()
        if counts or output_aux_loss:
            tokens_N = count(routing.experts, len(self.tokens_per_expert))
        if counts:
            self.tokens_per_expert += tokens_N
        # Like the dense layer: where nothing is kept for a backward pass, some tokens at a time need little memory.
        step = len(x_SE) if torch.is_grad_enabled() else TOKENS
        pieces = zip(*(part.split(max(step, 1)) for part in (x_SE, routing.experts, routing.weights)), strict=True)
        y_SE = torch.cat([(self.experts(x, experts) * weights[..., None]).sum(1) for x, experts, weights in pieces])
        y = y_SE.view_as(x)
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        y = y.to(x.dtype)
        return (y, balance_loss(routing.scores, tokens_N)) if output_aux_loss else y

    def load(self) -> Tensor:
        """Tokens each expert got since the last update, int64 `[N]`: the buffer itself, for processes to sum over."""
        return self.tokens_per_expert

    @torch.no_grad()
    def update_balance(self, speed: float) -> None:
        """Moves each expert's bias by `speed` towards the mean load, and begins to count anew.

        bias += speed * sign(mean load - load) (arXiv 2408.15664, algorithm 1); DeepSeek-V3 used 0.001, at the end 0.

        Raises:
            UserError: speed is negative, or not 0 although there is no bias to move (softmax).
        """
        bias = self.gate.e_score_correction_bias
        if speed < 0 or (speed and bias is None):
            raise UserError(f"speed: {'must not be negative' if speed < 0 else 'softmax has no bias'}, got {speed}")
        if bias is not None:
            load = self.tokens_per_expert
            bias += speed * (load.sum() - len(load) * load).sign()  # in integers: exact
        self.tokens_per_expert.zero_()


def count(experts: Tensor, n: int) -> Tensor:
    """int64 `[n]`: how often each of the numbers 0 to n - 1 is in `experts`; unlike `bincount` it makes no GPU wait."""
    experts = experts.flatten()
    return experts.new_zeros(n).scatter_add_(0, experts, torch.ones_like(experts))


def balance_loss(scores_SN: Tensor, tokens_N: Tensor) -> Tensor:
    """N * sum over experts of (share of tokens that chose it) * (mean score), a scalar.

    Switch Transformer's (arXiv 2101.03961, equations 4 to 6), with K choices as in Qwen3: balanced, it is K. Sigmoid
    scores are first made to sum to one a token (DeepSeek-V3, equation 19). The gradient reaches the scores only.
    """
    share_N = tokens_N.to(scores_SN.dtype) / len(scores_SN)
    mean_N = (scores_SN / scores_SN.sum(-1, keepdim=True)).mean(0)
    return len(tokens_N) * (share_N * mean_N).sum()


class Imbalance(NamedTuple):
    max_violation: float
    """MaxVio = highest load / mean load - 1: 0 when balanced, N/K - 1 when all tokens go to the same K experts."""
    idle: float
    """The share of experts that got no token."""


def imbalance(load: Tensor) -> Imbalance:
    """How unevenly the tokens are shared out (arXiv 2408.15664, section 4, for MaxVio), from `[N]` tokens per expert.

    Raises:
        UserError: no tokens were counted.
    """
    total = int(load.sum())
    if not total:
        raise UserError("load: no tokens were counted; the mixture of experts counts them in training only")
    return Imbalance(int(load.max()) * len(load) / total - 1, int((load == 0).sum()) / len(load))
