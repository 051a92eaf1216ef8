"""Linear layers whose weights are packed for serving, and the small operators between them. No gradient anywhere.

On the CPU the work is done in C++ (`native/linear.cpp`). A row's result depends on nothing but that row, to the bit:
not on the rows beside it, nor on the number of threads. A call costs a few microseconds. Elsewhere, and where the
library is missing, PyTorch computes what the definitions here say; there the bits are PyTorch's.

Letters: N outputs of a linear layer or, of the small operators, rows; K inputs; G groups of inputs; M rows of x.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inazuma.errors import UserError
from inazuma.ops.cpu.library import LIBRARY, MISSING, Linear, function
from inazuma.ops.dispatch import engine_for

Kind = Literal["float32", "bfloat16", "int8", "int4"]
KINDS: tuple[Kind, ...] = ("float32", "bfloat16", "int8", "int4")

GROUP = 32
"""Inputs of an output that share a scale and a zero point in int4."""
SHARED = {"int8": 4 * GROUP, "int4": GROUP}
"""Inputs of a row of x that share a scale: a few of a token's numbers may be a hundred times the others."""
PANEL = 32
"""Outputs that lie together (`native/interface.h`)."""
STEP = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": GROUP}
"""What the number of inputs is padded to."""
SLICE = 1 << 24
"""Weights that are packed at a time."""
MANY = 16
"""Rows from which on a call lets other threads of Python run. A shorter call keeps Python's lock: to get it back may
take milliseconds where another thread is busy."""
_CPU = torch.device("cpu")


class Packed(ABC):
    """y = x W^T + b with weights that `pack` has laid out. It never changes, so that copies of a model share it."""

    def __init__(self, kind: Kind, outputs: int, inputs: int):
        self.kind, self.outputs, self.inputs = kind, outputs, inputs

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """
        Args:
            x: float32 `[...,K]`, contiguous. int8 and int4 quantise each row by itself, `SHARED` inputs at a time as
                `quantize_rows` does, bfloat16 rounds it. A row with a number that is not finite gives NaN in int8 and
                int4, and what IEEE 754 says in the others.
            out: float32 `[...,N]`, contiguous, to write to.

        Returns:
            float32 `[...,N]`.

        Raises:
            UserError: x or out is of another dtype, shape or device, or not contiguous.
        """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Of weights, scales and bias, as they lie in memory."""

    def __deepcopy__(self, memo: dict) -> Packed:
        return self

    def __repr__(self) -> str:
        return f"{self.kind}, {self.inputs} -> {self.outputs}, {self.nbytes} bytes"


@torch.no_grad()
def pack(weight_NK: Tensor, bias_N: Tensor | None, kind: Kind) -> Packed:
    """A linear layer of these weights (any float dtype and any shape), on their device.

    float32 and bfloat16: weights rounded to that, sums in float32. int8: `quantize_rows`. int4: `quantize_groups`.

    Raises:
        UserError: an unknown kind, shapes that do not fit, a weight that is not finite, int8 or int4 on another device
            than the CPU.
    """
    if kind not in KINDS:
        raise UserError(f"pack: {kind!r} is not known, only {', '.join(KINDS)}")
    if weight_NK.dim() != 2 or 0 in weight_NK.shape:
        raise UserError(f"pack: the weight must be [N,K] and not empty, got {list(weight_NK.shape)}")
    if bias_N is not None and bias_N.shape != weight_NK.shape[:1]:
        raise UserError(f"pack: the bias must be [N], N = {len(weight_NK)}, got {list(bias_N.shape)}")
    device = weight_NK.device.type
    if kind in SHARED and device != "cpu":
        raise UserError(f"pack: {kind} works on the CPU only, and the weight is on {device!r}")
    if not weight_NK.isfinite().all():
        raise UserError("pack: a weight is not finite")
    if device == "cpu" and LIBRARY is not None:
        return _Panels(weight_NK, bias_N, kind)
    if device == "cpu":
        _warn_missing()
    return _Plain(weight_NK, bias_N, kind)


@functools.cache
def _warn_missing() -> None:
    warnings.warn(
        f"the C++ library is missing ({MISSING}); packed layers are computed slowly, by PyTorch",
        RuntimeWarning,
        stacklevel=4,
    )


def _check(x: Tensor, name: str, shape: tuple[int, ...], device: torch.device) -> None:
    if x.dtype is torch.float32 and x.shape == shape and x.is_contiguous() and x.device == device:
        return
    found = f"{'' if x.is_contiguous() else 'strided '}{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    raise UserError(f"{name}: expected float32 {list(shape)}, contiguous, on {device}, got {found} on {x.device}")


# ---------------------------------------------------------------------------------------------------------------------
# Definitions
# ---------------------------------------------------------------------------------------------------------------------


def quantize_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers `q [N,K]` from -127 to 127 (float32) and scales `[N]`: x is about q * scale.

    A scale is the row's largest magnitude by 127, of at least 1e-35; NaN for a row with a number that is not finite.
    """
    x_NK = x_NK.float()
    most = x_NK.abs().amax(-1)
    finite = x_NK.isfinite().all(-1)
    most = torch.where(finite, most.clamp(min=1e-35), 1.0)
    q_NK = torch.where(finite[:, None], x_NK * (127 / most)[:, None], 0.0).round()
    return q_NK, torch.where(finite, most / 127, torch.nan)


def quantize_groups(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps `[N,G,GROUP]` from 0 to 15, scales and zeros `[N,G]` in bfloat16: a weight is about step * scale + zero.

    A group reaches from its least to its greatest weight; the last one is filled up with its output's last weight.
    """
    N, K = weight_NK.shape
    filled = F.pad(weight_NK.float()[None], (0, -K % GROUP), mode="replicate")[0]
    groups = filled.view(N, -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    zero = low.bfloat16()
    scale = ((high - zero.float()) / 15).clamp(min=1e-30).bfloat16()
    steps = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15)
    return steps, scale, zero


class _Plain(Packed):
    """The definition, in PyTorch."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, kind: Kind):
        super().__init__(kind, *weight_NK.shape)
        self.bias = None if bias_N is None else bias_N.float()
        if kind == "int8":
            q, scales = quantize_rows(weight_NK)
            self.weights = (q.to(torch.int8), scales)
        elif kind == "int4":
            self.weights = quantize_groups(weight_NK)
        else:
            self.weights = (weight_NK.to(getattr(torch, kind)),)

    @torch.no_grad()
    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        _check(x, "x", (*x.shape[:-1], self.inputs), self.weights[0].device)
        if self.kind in ("float32", "bfloat16"):
            y = F.linear(x.to(self.weights[0].dtype), self.weights[0]).float()
        else:
            y = self._of_groups(x.view(-1, self.inputs)).view(*x.shape[:-1], self.outputs)
        if self.bias is not None:
            y = y + self.bias
        if out is None:
            return y
        _check(out, "out", y.shape, y.device)
        return out.copy_(y)

    def _of_groups(self, x_MK: Tensor) -> Tensor:
        """Products of whole numbers are added up exactly in a group, and in float32 over the groups."""
        shared = SHARED[self.kind]
        groups_MGS = F.pad(x_MK, (0, -self.inputs % shared)).view(len(x_MK), -1, shared)
        q, scales = quantize_rows(groups_MGS.flatten(0, 1))
        q_MGS, scales_MG = q.view_as(groups_MGS).double(), scales.view(groups_MGS.shape[:2])
        if self.kind == "int8":
            weight_NK, weight_scales_N = self.weights
            steps = F.pad(weight_NK, (0, -self.inputs % shared)).view(self.outputs, -1, shared)
        else:
            steps, weight_scales, zeros = self.weights
        sums_MNG = torch.einsum("mgs,ngs->mng", q_MGS, steps.double()).float()
        if self.kind == "int8":
            return (sums_MNG * scales_MG[:, None]).sum(-1) * weight_scales_N
        sums_MNG = sums_MNG * weight_scales.float() + q_MGS.sum(-1).float()[:, None] * zeros.float()
        return (sums_MNG * scales_MG[:, None]).sum(-1)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.weights) + (0 if self.bias is None else self.bias.nbytes)


# ---------------------------------------------------------------------------------------------------------------------
# Panels for the C++ library
# ---------------------------------------------------------------------------------------------------------------------


class _Panels(Packed):
    """What `InazumaLinear` in `native/interface.h` describes."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, kind: Kind):
        super().__init__(kind, *weight_NK.shape)
        count = -(-self.outputs // PANEL)
        self.panels = torch.empty(0)
        self.scales = torch.empty(count * PANEL) if kind == "int8" else None
        step = max(1, SLICE // self.inputs // PANEL)
        for start in range(0, count, step):  # the room for what lies between weights and panels is bounded
            part = weight_NK.detach()[start * PANEL : (start + step) * PANEL]
            part = F.pad(part.float(), (0, 0, 0, -len(part) % PANEL))
            if kind == "int8":
                part, self.scales[start * PANEL : start * PANEL + len(part)] = quantize_rows(part)
            laid = _panels(part, kind)
            if not start:
                self.panels = laid.new_empty(count, laid.shape[1])
            self.panels[start : start + len(laid)] = laid
        self.bias = None if bias_N is None else F.pad(bias_N.detach().float(), (0, -self.outputs % PANEL)).contiguous()
        self._layer = Linear(
            self.panels.data_ptr(),
            None if self.scales is None else self.scales.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.outputs,
            self.inputs,
            KINDS.index(kind),
        )
        self._at = ctypes.addressof(self._layer)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        _check(x, "x", (*x.shape[:-1], self.inputs), _CPU)
        shape = (*x.shape[:-1], self.outputs)
        if out is None:
            out = torch.empty(shape)
        else:
            _check(out, "out", shape, _CPU)
        rows = x.numel() // self.inputs
        run = _linear if rows < MANY else _linear_unlocked
        if run(self._at, x.data_ptr(), rows, out.data_ptr(), torch.get_num_threads()):
            raise MemoryError("no memory for a linear layer")
        return out

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.panels, self.scales, self.bias) if x is not None)


def _panels(weight_NK: Tensor, kind: Kind) -> Tensor:
    """uint8 `[panels, bytes]` of weights (of int8: the whole numbers) whose N is a multiple of PANEL."""
    N, K = weight_NK.shape
    panels = N // PANEL
    if kind == "int4":
        steps, scale, zero = quantize_groups(weight_NK)
        G = scale.shape[1]
        numbers = torch.stack([scale, zero], -1).view(panels, PANEL, G, 2).permute(0, 2, 3, 1).contiguous()
        # Eight inputs of an output lie in four bytes: i and i + 4 in one.
        halves = steps.to(torch.uint8).view(panels, PANEL, G, GROUP // 8, 2, 4)
        bytes_ = (halves[..., 0, :] | halves[..., 1, :] << 4).permute(0, 2, 3, 1, 4)
        parts = (numbers.view(torch.uint8).view(panels, G, -1), bytes_.reshape(panels, G, -1))
        return torch.cat(parts, -1).view(panels, -1)
    step = STEP[kind]
    weight_NK = (weight_NK + 128).to(torch.uint8) if kind == "int8" else weight_NK.to(getattr(torch, kind))
    weight_NK = F.pad(weight_NK, (0, -K % step))
    laid = weight_NK.view(panels, PANEL, -1, step).permute(0, 2, 1, 3).contiguous()
    return laid.view(torch.uint8).view(panels, -1)


# ---------------------------------------------------------------------------------------------------------------------
# Between linear layers
# ---------------------------------------------------------------------------------------------------------------------


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467), all float32 and contiguous."""
    return _rms_norm(x_NE, None, weight_E, eps, out)


def add_rms_norm(x_NE: Tensor, y_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Adds y to x in place, and returns `rms_norm` of that."""
    _check(y_NE, "y", x_NE.shape, x_NE.device)
    return _rms_norm(x_NE, y_NE, weight_E, eps, None)


def _rms_norm(x: Tensor, y: Tensor | None, weight: Tensor, eps: float, out: Tensor | None) -> Tensor:
    _check(x, "x", x.shape, x.device)
    _check(weight, "weight", x.shape[-1:], x.device)
    if out is not None:
        _check(out, "out", x.shape, x.device)
    if not _in_native(x):
        normed = F.rms_norm(x if y is None else x.add_(y), weight.shape, weight, eps)
        return normed if out is None else out.copy_(normed)
    out = torch.empty_like(x) if out is None else out
    width = x.shape[-1]
    rows, addend = x.numel() // max(1, width), None if y is None else y.data_ptr()
    run = _rms_norm_native if rows < MANY else _rms_norm_unlocked
    run(x.data_ptr(), addend, weight.data_ptr(), eps, rows, width, out.data_ptr(), torch.get_num_threads())
    return out


def silu_mul(gate_up_NF2: Tensor) -> Tensor:
    """silu(first half) * second half of the last dimension `[...,2F]`, `[...,F]`; float32 and contiguous."""
    if gate_up_NF2.shape[-1] % 2:
        raise UserError(f"gate_up: the last dimension must be even, got {gate_up_NF2.shape[-1]}")
    _check(gate_up_NF2, "gate_up", gate_up_NF2.shape, gate_up_NF2.device)
    if not _in_native(gate_up_NF2):
        gate, up = gate_up_NF2.chunk(2, -1)
        return F.silu(gate) * up
    width = gate_up_NF2.shape[-1] // 2
    out = torch.empty((*gate_up_NF2.shape[:-1], width))
    rows = out.numel() // max(1, width)
    run = _silu_mul if rows < MANY else _silu_mul_unlocked
    run(gate_up_NF2.data_ptr(), rows, width, out.data_ptr(), torch.get_num_threads())
    return out


def rotate(x_NHD: Tensor, positions_N: Tensor, cos_SP: Tensor, sin_SP: Tensor, start: int, interleaved: bool) -> Tensor:
    """Turns the columns start to start + 2 P of every head by its row's position, in place; returns x.

    Args:
        x_NHD: float32; rows and heads may lie in memory with any strides.
        positions_N: int32 or int64, contiguous, 0 to S - 1.
        cos_SP, sin_SP: float32, contiguous, of every position's angles.
        interleaved: pairs are neighbours, else column i and i + P. The result always lies in halves, as that of
            `inazuma.model.layers.Rotation`.

    Raises:
        UserError: a dtype or shape that does not fit, or (but on a GPU) a position that the tables do not have.
    """
    N, H, D = x_NHD.shape
    S, P = cos_SP.shape
    _check(cos_SP, "cos", (S, P), x_NHD.device)
    _check(sin_SP, "sin", (S, P), x_NHD.device)
    if x_NHD.dtype is not torch.float32 or x_NHD.stride(2) != 1:
        raise UserError("x: expected float32 whose columns lie side by side")
    if not 0 <= start <= D - 2 * P:
        raise UserError(f"start: {2 * P} columns from {start} on are not among {D}")
    wide = positions_N.dtype is torch.int64
    whole = (wide or positions_N.dtype is torch.int32) and positions_N.is_contiguous()
    if not whole or positions_N.shape != (N,) or positions_N.device != x_NHD.device:
        raise UserError(f"positions: expected int32 or int64 [{N}], contiguous, on {x_NHD.device}")
    if x_NHD.is_cuda and engine_for(x_NHD[:1, :1, :1]) == "triton":
        from inazuma.ops.triton.rotation import rotate as on_gpu

        return on_gpu(x_NHD, positions_N, cos_SP, sin_SP, start, interleaved)
    if not _in_native(x_NHD):
        part = x_NHD[..., start : start + 2 * P]
        a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
        cos, sin = cos_SP[positions_N.long()][:, None], sin_SP[positions_N.long()][:, None]
        part.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
        return x_NHD
    failed = (_rotate if N < MANY else _rotate_unlocked)(
        x_NHD.data_ptr() + 4 * start,
        N,
        x_NHD.stride(0),
        H,
        x_NHD.stride(1),
        positions_N.data_ptr(),
        wide,
        cos_SP.data_ptr(),
        sin_SP.data_ptr(),
        S,
        P,
        interleaved,
        torch.get_num_threads(),
    )
    if failed == 1:
        raise MemoryError("no memory for a rotation")
    if failed:
        raise UserError(f"positions: one is not in 0 to {S - 1}")
    return x_NHD


def _in_native(x: Tensor) -> bool:
    if not x.is_cpu:
        return False
    if LIBRARY is None:
        _warn_missing()
    return LIBRARY is not None


def _functions(name: str) -> Iterator:
    """A function of the library that keeps Python's lock, and the same one that lets other threads run."""
    return (function(name, locked=locked) for locked in (True, False))


_linear, _linear_unlocked = _functions("linear")
_rms_norm_native, _rms_norm_unlocked = _functions("rms_norm")
_silu_mul, _silu_mul_unlocked = _functions("silu_mul")
_rotate, _rotate_unlocked = _functions("rotate")
