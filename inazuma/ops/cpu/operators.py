"""The C++ engine as PyTorch operators: gradients, shapes for `torch.compile`, and what it leaves to the reference.

No postponed annotations here: PyTorch reads the operators' signatures.
"""

import torch
from torch import Tensor

from inazuma.ops.contract import Spans, check_range
from inazuma.ops.cpu.library import MISSING, Problem, call, rows


def obstacle(*tensors: Tensor | None) -> str | None:
    """Why this engine cannot take the tensors; None where it can."""
    if MISSING is not None:
        return MISSING
    for x in tensors:
        if x is None:
            continue
        if x.device.type != "cpu":
            return f"a tensor is on {x.device}"
        if x.dtype not in (torch.float32, torch.bfloat16):
            return f"it has no {x.dtype}"
        if x.numel() == 0:
            return "a tensor is empty"
    return None


def select_tokens(index_q: Tensor, index_k: Tensor, index_w: Tensor, k: int, spans: Spans) -> Tensor:
    return _select(index_q, index_k, index_w, k, spans.first.int(), spans.last.int())


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _attention(q, k, v, sink, indices, None, None, scale)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _attention(q, k, v, sink, None, spans.first.int(), spans.last.int(), scale)


def index_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    indices: Tensor | None,
    spans: Spans | None,
    scale: float,
) -> Tensor:
    first, last = (None, None) if spans is None else (spans.first.int(), spans.last.int())
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (index_q, index_k, index_w))
    teacher = (x.detach() for x in (q, k, lse))
    return _index_loss(index_q, index_k, index_w, *teacher, indices, first, last, scale, learns)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Operators. What they read row by row may lie in memory with any strides but the last.
# ---------------------------------------------------------------------------------------------------------------------


def _by_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _keys_by_rows(x: Tensor, indices: Tensor | None) -> Tensor:
    """Rows that are gathered more than once are widened to float32 beforehand, which is exact, not at every gather."""
    often = indices is not None and indices.shape[1] * indices.shape[2] > x.shape[1]
    return _by_rows(x.float() if often else x)


def _packed(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _keys(problem: Problem, indices: Tensor | None, first: Tensor | None, last: Tensor | None) -> tuple:
    """Writes into `problem` which keys are read; returns what must stay alive meanwhile."""
    kept = tuple(_packed(x, torch.int32) for x in (indices, first, last))
    problem.indices, problem.first, problem.last = (_pointer(x) for x in kept)
    if indices is not None:
        check_range(indices, problem.S)
        problem.K = indices.shape[-1]
    return kept


def _attention_problem(q: Tensor, k: Tensor, v: Tensor | None, scale: float) -> Problem:
    B, T, H, Dk = q.shape
    S, G = k.shape[1:3]
    return Problem(B=B, T=T, S=S, H=H, G=G, Dk=Dk, Dv=0 if v is None else v.shape[-1], scale=scale)


@torch.library.custom_op("inazuma::cpu_select_tokens", mutates_args=(), device_types="cpu")
def _select(index_q: Tensor, index_k: Tensor, index_w: Tensor, k: int, first: Tensor, last: Tensor) -> Tensor:
    B, T, I, C = index_q.shape  # noqa: E741  (I is the design's letter for index heads)
    problem = Problem(B=B, T=T, S=index_k.shape[1], I=I, C=C, K=k)
    index_q, index_k, index_w = _by_rows(index_q), _by_rows(index_k), _packed(index_w, torch.float32)
    kept = _keys(problem, None, first, last)
    indices = index_q.new_empty(B, T, k, dtype=torch.int32)
    call("select", problem, rows(index_q), rows(index_k), _pointer(index_w), _pointer(indices))
    del kept
    return indices


@_select.register_fake
def _(index_q, index_k, index_w, k, first, last):
    return index_q.new_empty(*index_q.shape[:2], k, dtype=torch.int32)


@torch.library.custom_op("inazuma::cpu_attention", mutates_args=(), device_types="cpu")
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink: Tensor | None,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    problem = _attention_problem(q, k, v, scale)
    q, sink = _by_rows(q), _packed(sink, torch.float32)
    k, v = _keys_by_rows(k, indices), _keys_by_rows(v, indices)
    kept = _keys(problem, indices, first, last)
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    call("attention", problem, rows(q), rows(k), rows(v), _pointer(sink), _pointer(out), _pointer(lse))
    del kept
    return out, lse


@_attention.register_fake
def _(q, k, v, sink, indices, first, last, scale):
    return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("inazuma::cpu_attention_backward", mutates_args=(), device_types="cpu")
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
    dout: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _attention_problem(q, k, v, scale)
    dtype = k.dtype
    q, dout, delta = _by_rows(q), _by_rows(dout), _packed(delta, torch.float32)
    k, v = _keys_by_rows(k, indices), _keys_by_rows(v, indices)
    kept = _keys(problem, indices, first, last)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    sources = (rows(x) for x in (q, k, v, dout))
    call("attention_backward", problem, *sources, *(_pointer(x) for x in (lse, delta, dq, dk, dv)))
    del kept
    return dq, dk.to(dtype), dv.to(dtype)


@_attention_backward.register_fake
def _(q, k, v, indices, first, last, scale, dout, lse, delta):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save_attention(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate_attention(ctx, dout, dlse):
    q, k, v, sink, indices, first, last, out, lse = ctx.saved_tensors
    with torch.autocast("cpu", enabled=False):
        delta = torch.linalg.vecdot(dout.float(), out.float()) - dlse  # gradients that are not there come as zeros
    dq, dk, dv = _attention_backward(q, k, v, indices, first, last, ctx.scale, dout, lse, delta)
    dsink = None
    if sink is not None:
        dsink = -((sink.float() - lse).exp() * delta).sum((0, 1)).to(sink.dtype)
    return dq, dk, dv, dsink, None, None, None, None


_attention.register_autograd(_differentiate_attention, setup_context=_save_attention)


@torch.library.custom_op("inazuma::cpu_index_loss", mutates_args=(), device_types="cpu")
def _index_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    indices: Tensor | None,
    first: Tensor | None,
    last: Tensor | None,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and, where `learns`, its gradients to the index tensors (empty otherwise)."""
    problem = _attention_problem(q, k, None, scale)
    problem.I, problem.C = index_q.shape[2:]
    index_q, q, dtype = _by_rows(index_q), _by_rows(q), index_k.dtype
    index_k, k = _keys_by_rows(index_k, indices), _keys_by_rows(k, indices)
    weights, lse = _packed(index_w, torch.float32), _packed(lse, torch.float32)
    kept = _keys(problem, indices, first, last)
    loss = q.new_empty((), dtype=torch.float32)
    gradients = [x.new_empty(x.shape if learns else 0) for x in (index_q, index_k, weights)]
    pointers = [_pointer(x) if learns else None for x in gradients]
    call(
        "index_loss",
        problem,
        rows(index_q),
        rows(index_k),
        _pointer(weights),
        rows(q),
        rows(k),
        _pointer(lse),
        _pointer(loss),
        *pointers,
    )
    del kept
    dindex_q, dindex_k, dindex_w = gradients
    return loss, dindex_q, dindex_k.to(dtype), dindex_w.to(index_w.dtype)


@_index_loss.register_fake
def _(index_q, index_k, index_w, q, k, lse, indices, first, last, scale, learns):
    gradients = (x.new_empty(x.shape if learns else 0) for x in (index_q, index_k, index_w))
    return q.new_empty((), dtype=torch.float32), *gradients


def _save_loss(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])


def _differentiate_loss(ctx, dloss, *_):
    gradients = (x * dloss.to(x.dtype) for x in ctx.saved_tensors)
    return *gradients, *[None] * 8


_index_loss.register_autograd(_differentiate_loss, setup_context=_save_loss)
