"""The parts every Transformer has: RMSNorm, rotary positions with YaRN, SwiGLU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.model.config import Llama3Scaling, ModelConfig, YarnScaling


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is when it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(at_least_float32(x), (x.shape[-1],), at_least_float32(self.weight), self.eps).to(x.dtype)


TOKENS = 2048
"""How many tokens of a row the feed-forward layer works on at once where no gradient is wanted."""


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self._transform(x)
        # Nothing is kept for a backward pass: some tokens at a time need little memory, and that stays in the cache.
        return torch.cat([self._transform(part) for part in x.split(TOKENS, dim=1)], dim=1)

    def _transform(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_scale(width: int, scaling: YarnScaling | Llama3Scaling | None) -> float:
    """width ** -0.5, times mscale squared under YaRN (DeepSeek's `mscale_all_dim`)."""
    if not isinstance(scaling, YarnScaling):
        return width**-0.5
    return width**-0.5 * _mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def inverse_frequencies(width: int, config: ModelConfig) -> tuple[Tensor, float]:
    """RoPE's angular frequencies `[width / 2]` (float32), and the factor YaRN puts on cos and sin.

    YaRN (arXiv 2309.00071, section 3.2) divides slow frequencies by `factor`, leaves fast ones alone and blends
    linearly in between; the bounds are the pairs that turn `beta_fast` and `beta_slow` times over the original context.
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float32) / width
    frequencies = 1.0 / config.rope_theta**pairs
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling), 1.0

    def pair_that_turns(times: float) -> float:
        turns = scaling.original_max_position_embeddings / (times * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    slow = ramp.clamp(0, 1)
    factor = _mscale(scaling.factor, scaling.mscale) / _mscale(scaling.factor, scaling.mscale_all_dim)
    return frequencies * (1 - slow) + frequencies / scaling.factor * slow, factor


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divides by `factor` what turns fewer than `low_freq_factor` times over the original context, leaves alone what
    turns more than `high_freq_factor` times, and blends linearly in between (Llama 3.1's `apply_scaling`)."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    fast = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return frequencies / scaling.factor * (1 - fast) + frequencies * fast


class Rotation:
    """cos and sin of every position's angles, `[B,T,width/2]` in at least float32."""

    def __init__(self, positions: Tensor, width: int, config: ModelConfig):
        frequencies, factor = inverse_frequencies(width, config)
        angles = positions[..., None].to(torch.float32) * frequencies.to(positions.device)
        self.cos, self.sin, self.width = angles.cos() * factor, angles.sin() * factor, width

    def __call__(self, x: Tensor, *, interleaved: bool) -> Tensor:
        """Rotates `x [B,T,heads,width]`: pairs are neighbours when `interleaved`, else element i and i + width/2.

        The result always lies in halves. That permutes an interleaved head's width, in queries and keys alike, so
        their products are the same.
        """
        a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
        cos, sin = self.cos[:, :, None], self.sin[:, :, None]
        turned = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
        return torch.cat(turned, dim=-1).to(x.dtype)
