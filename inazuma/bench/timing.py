"""How it is measured: times in turns, the memory of a call, and the ceilings of the machine."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inazuma.bench.cases import Call

TURN = 0.05
"""Seconds a turn lasts at least: after one of PyTorch's calls its threads spin for a while, and a shorter turn would
share the cores with them."""


_CEILING_TURNS = 5


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given; a CPU has."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Call, device: str, calls: int = 1) -> float:
    """Seconds a call, over `calls` calls in a row."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def take_turns(
    calls: Mapping[str, Call], expected: Mapping[str, float], repeats: int, device: str
) -> Iterator[dict[str, Any]]:
    """Times the warmed-up calls in turns, so that whatever else the machine does falls on all alike.

    Yields a record a turn: its `turn` number, `operator`, how many `calls` it was, and `seconds` a call. `expected` are
    the seconds of a call, of which short ones are taken several at a turn.
    """
    for turn in range(repeats):
        for name, call in calls.items():
            count = min(1000, math.ceil(TURN / max(expected[name], 1e-9)))
            yield {"turn": turn, "operator": name, "calls": count, "seconds": seconds_of(call, device, count)}


def measure_first_call(call: Call, device: str) -> tuple[float, dict[str, int]]:
    """Seconds of a call that is the first of its size, and its memory in bytes, as far as this system tells.

    `made_bytes` are its outputs and gradients, and `extra_bytes` the most that was in use at one time besides them and
    what was there before the call. On a GPU that is what PyTorch's allocator gave out; on Linux the resident memory,
    where buffers that an earlier, smaller call left behind count as there before.
    """
    before = _mark(device)
    started = time.perf_counter()
    made = call()
    synchronize(device)
    seconds = time.perf_counter() - started
    size = sum(x.numel() * x.element_size() for x in made)
    memory = {"made_bytes": size}
    if before is not None:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
        # Pages that were resident before may be given back meanwhile: then the sum falls a little below zero.
        memory["extra_bytes"] = max(0, peak - before - size)
    return seconds, memory


def _mark(device: str) -> int | None:
    """The bytes in use now, from where the peak is counted anew; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        # What was freed is still resident and could be used again unseen: it is given back first.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _resident("VmRSS")
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    """Bytes: VmRSS, what is resident, or VmHWM, the most that ever was since it was last reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def free_memory(device: str) -> int | None:
    """Bytes that can still be had; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def ceilings(dtype: torch.dtype, device: str, *, copied: int, widths: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Records of what PyTorch gets out of this machine with the same threads: copies, and products of matrices.

    A copy of `copied` bytes moves twice as many, as STREAM counts (McCalpin, 1995); a product of two square matrices
    of a width is 2 width^3 FLOP.
    """

    def record(name: str, call: Call, **size: int) -> Iterator[dict[str, Any]]:
        call()
        for _ in range(_CEILING_TURNS):
            yield {"ceiling": name, **size, "seconds": seconds_of(call, device)}

    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    yield from record("copy", lambda: [target.copy_(source)], bytes=2 * copied)
    for width in widths:
        a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        yield from record("product", lambda a=a, b=b, to=product: [torch.mm(a, b, out=to)], flops=2 * width**3)
