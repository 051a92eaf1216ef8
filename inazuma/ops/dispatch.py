"""The operators: their arguments are checked here, once, and an engine does the work.

    reference   plain PyTorch, any device and float dtype: the definition
    cpu         C++ for float32 and bfloat16 on the CPU
    triton      kernels for NVIDIA and AMD GPUs, in float16, bfloat16 and float32

An engine is a module with `select_tokens`, `sparse_attention`, `dense_attention` and `index_loss` (arguments as they
are passed below) and `obstacle`, which says why it cannot take some tensors. `engine="auto"` takes the first that can;
`engine_for` says which one that is. An engine asked for by name runs, or raises `UserError`.
"""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from inazuma.errors import RunError, UserError
from inazuma.ops import cpu, reference, triton
from inazuma.ops.contract import check_attention, check_index, check_indices, check_kept, check_tensor, resolve_spans

ENGINES = {"triton": triton, "cpu": cpu, "reference": reference}

AUTO = ("triton", "cpu", "reference")
"""What `engine="auto"` may take, the fastest first: `triton` on NVIDIA GPUs (`benchmarks/results/gpu.json`), and on
CPUs the C++ engine, faster than the reference at every shape, from 1 token on (`benchmarks/results/auto.json`). Dense
attention is part of the choice in `dsa`, which reads in place what a selection of all keys would gather. On AMD GPUs
triton has to be asked for: its kernels compile for them, but none has run them yet."""

debug = os.environ.get("INAZUMA_DEBUG", "0") != "0"
"""Whether `select_tokens` counts the scores that are not finite and raises `RunError` where there are any, which takes
as long as the reference's selection. Without it such keys are kept only where finite scores do not fill a row."""


deterministic = os.environ.get("INAZUMA_DETERMINISTIC", "1") != "0"
"""Whether the same call gives the same bits in every run. Without it the triton engine adds the gradients of kept keys
atomically, in whatever order they come: no map of who reads a key is made, and sums differ by their rounding. With
`torch.use_deterministic_algorithms(True)` it is as if this were True. Selection is always deterministic."""


def engine_for(*tensors: Tensor | None, engine: str = "auto") -> str:
    """The name of the engine that an operator with these tensors would use.

    Raises:
        UserError: `engine` is not one of `ENGINES` or "auto", or cannot take these tensors.
    """
    if engine != "auto":
        if engine not in ENGINES:
            raise UserError(f"engine: expected auto or one of {', '.join(ENGINES)}, got {engine!r}")
        if (why := ENGINES[engine].obstacle(*tensors)) is not None:
            raise UserError(f"engine: {engine!r} cannot run: {why}")
        return engine
    on_cpu = all(x is None or x.device.type == "cpu" for x in tensors)
    if on_cpu and cpu.MISSING is not None:
        _warn_once(f"the C++ engine is missing ({cpu.MISSING}); the slow reference engine takes its place on the CPU")
    nvidia = torch.version.hip is None and any(x is not None and x.is_cuda for x in tensors)
    if nvidia and not triton.installed():
        _warn_once("the package triton is not installed; the slow reference engine takes its place on the GPU")
    able = (name for name in AUTO if ENGINES[name].obstacle(*tensors) is None)
    return next(name for name in able if name != "triton" or nvidia)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def _engine(engine: str, *tensors: Tensor | None) -> ModuleType:
    return ENGINES[engine_for(*tensors, engine=engine)]


@torch.no_grad()
def select_tokens(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    k: int,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
    engine: str = "auto",
) -> Tensor:
    """The k visible keys of each query that the lightning indexer scores highest.

    Args:
        index_q: `[B,T,I,C]`. index_k: `[B,S,C]`, one key for all index heads.
        index_w: `[B,T,I]`, the heads' weights with all scales folded in; may be negative.
        k: how many to keep, 1 to 2^31 - 1; may exceed S.
        first, last: int32 `[B,T]`, the visible keys, inclusive; by default causal.

    Returns:
        int32 `[B,T,k]`, ascending, then -1 where a query sees fewer than k keys (it keeps all of them).

    Raises:
        UserError: a shape, dtype or device that does not fit, or an engine that cannot run.
        RunError: with `debug`, a score that is not finite.
    """
    check_index(index_q, index_k, index_w)
    check_kept(k)
    spans = resolve_spans(first, last, index_q, index_k.shape[1])
    if debug and (count := reference.count_non_finite(index_q, index_k, index_w, spans)):
        raise RunError(f"select_tokens: {count} scores of visible keys are not finite")
    return _engine(engine, index_q, index_k, index_w).select_tokens(index_q, index_k, index_w, k, spans)


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor | None = None,
    last: Tensor | None = None,
    scale: float | None = None,
    sink: Tensor | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention over every visible key: what sparse attention approximates and the indexer learns from.

    Arguments and results are those of `sparse_attention`, with the visible keys in place of `indices`.
    """
    check_attention(q, k, v, sink)
    spans = resolve_spans(first, last, q, k.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _engine(engine, q, k, v, sink).dense_attention(q, k, v, spans, scale, sink)


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    sink: Tensor | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over its selected keys.

    Args:
        q: `[B,T,H,Dk]`. k: `[B,S,G,Dk]`. v: `[B,S,G,Dv]`; head h reads key-value head h // (H / G).
            Absorbed multi-head latent attention is G = 1, with v the first columns of k.
        indices: int32 `[B,T,K]`; -1 is an empty place. No key twice in a row.
        scale: of the scores, by default Dk ** -0.5.
        sink: `[H]`, a logit per head that takes part in the denominator only.

    Returns:
        out `[B,T,H,Dv]` in q's dtype, and lse `[B,T,H]`, the natural logarithm of the softmax denominator, in float32
        (float64 for float64 inputs). A query without keys gives zeros and -inf (with a sink: the sink).

    Raises:
        UserError: a shape, dtype, device or index that does not fit, or an engine that cannot run.
    """
    check_attention(q, k, v, sink)
    check_indices(indices, q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _engine(engine, q, k, v, sink).sparse_attention(q, k, v, indices, scale, sink)


def index_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    indices: Tensor | None = None,
    first: Tensor | None = None,
    last: Tensor | None = None,
    scale: float | None = None,
    engine: str = "auto",
) -> Tensor:
    """How far the indexer is from the attention it serves: mean over queries of KL(p || softmax(I)), in nats.

    p[t,s] = (1/H) sum_h exp(scale q[t,h] . k[s] - lse[t,h]) over the selected keys, or over every visible key when
    `indices` is None (the warm-up). Queries that see no key do not count. Gradients go to the three index tensors
    alone; q, k and lse are the teacher and are taken as constants.

    Args:
        index_q, index_k, index_w: as for `select_tokens`. q, k, scale: as for the attention.
        lse: `[B,T,H]`, the attention's log-sum-exp over that same set of keys, without a sink.

    Returns:
        a scalar in float32 (float64 for float64 inputs).
    """
    check_index(index_q, index_k, index_w)
    check_attention(q, k)
    check_tensor("lse", lse, q.shape[:3], "B,T,H", q)
    check_tensor("index_q", index_q, (*q.shape[:2], None, None), "B,T,I,C", q)
    check_tensor("index_k", index_k, (*k.shape[:2], None), "B,S,C", q)
    spans = None
    if indices is None:
        spans = resolve_spans(first, last, q, k.shape[1])
    else:
        check_indices(indices, q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    module = _engine(engine, index_q, index_k, index_w, q, k, lse)
    return module.index_loss(index_q, index_k, index_w, q, k, lse, indices, spans, scale)
