"""The C++ engine beside PyTorch's dense attention: `python benchmarks/ops_cpu.py --lengths 8192 32768`.

DSA (selection, attention and, with a backward pass, the indexer's loss) and causal `scaled_dot_product_attention` take
turns in one process on the same threads; each figure is a median. One head of keys and values serves all query heads.
Extra memory is measured in a process of its own: the largest resident memory of a call, less what was resident before
it and less its outputs, over the bytes of inputs, indices and outputs. The record, raw times included, goes to
`benchmarks/results/ops_cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inazuma.files import write_json
from inazuma.ops import dsa
from inazuma.ops.cpu.library import LIBRARY
from inazuma.ops.dispatch import engine_for
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "ops_cpu.json"
HEADS, WIDTH, INDEX_HEADS, INDEX_WIDTH, TOPK = 8, 64, 4, 32, 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def draw(batch: int, queries: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, index_q, index_k, index_w."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (batch, queries, HEADS, WIDTH),
        (batch, keys, 1, WIDTH),
        (batch, keys, 1, WIDTH),
        (batch, queries, INDEX_HEADS, INDEX_WIDTH),
        (batch, keys, INDEX_WIDTH),
        (batch, queries, INDEX_HEADS),
    ]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [*tensors[:5], tensors[5].float()]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention over every visible key, `[B,T,H,D]`."""
    k, v = (x.expand(-1, -1, HEADS, -1) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2)


def take_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int, calls: int = 1) -> dict:
    """Seconds a call of each, in the order they were taken, and how many times faster ours is by the medians.

    A turn is `calls` calls in a row: after one of PyTorch's its threads spin for a while, and a call of less than that
    would share the cores with them.
    """
    times: dict[str, list[float]] = {"ours": [], "dense": []}
    ours(), theirs()
    for _ in range(repeats):
        for name, call in (("ours", ours), ("dense", theirs)):
            started = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - started) / calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"seconds": times, "median": medians, "ratio": medians["dense"] / medians["ours"]}


def forward(length: int, dtype: torch.dtype, repeats: int) -> dict:
    q, k, v, *index = draw(1, length, length, dtype)
    with torch.no_grad():
        return take_turns(
            lambda: dsa(q, k, v, *index, topk=TOPK, stage="frozen", engine="cpu"), lambda: dense(q, k, v), repeats
        )


def training(length: int, dtype: torch.dtype, repeats: int) -> dict:
    leaves = [x.requires_grad_() for x in draw(1, length, length, dtype)]
    cotangent = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def ours() -> None:
        result = dsa(*leaves, topk=TOPK, stage="sparse", engine="cpu")
        torch.autograd.grad((result.out, result.loss), leaves, (cotangent, torch.ones(())))

    return take_turns(ours, lambda: torch.autograd.grad(dense(*leaves[:3]), leaves[:3], cotangent), repeats)


def decoding(length: int, dtype: torch.dtype, repeats: int) -> dict:
    """One token for each of four sequences that fill their caches to different lengths."""
    q, k, v, *index = draw(4, 1, length, dtype)
    last = torch.tensor([length, length // 2, length - 77, length - 1], dtype=torch.int32)[:, None] - 1
    seen = torch.arange(length) <= last[..., None]
    heads = [x.expand(-1, -1, HEADS, -1).transpose(1, 2) for x in (q, k, v)]
    with torch.no_grad():
        one = take_turns(
            lambda: dsa(*(x[:1] for x in (q, k, v, *index)), topk=TOPK, stage="frozen", engine="cpu"),
            lambda: dense(q[:1], k[:1], v[:1]),
            repeats,
            calls=20,
        )
        four = take_turns(
            lambda: dsa(q, k, v, *index, topk=TOPK, stage="frozen", last=last, engine="cpu"),
            lambda: scaled_dot_product_attention(*heads, attn_mask=seen[:, None]),
            repeats,
            calls=20,
        )
    return {"one sequence": one, "four sequences": four}


def memory(length: int, dtype: torch.dtype, train: bool) -> dict:
    """Bytes of one call in this process."""
    leaves = [x.requires_grad_(train) for x in draw(1, length, length, dtype)]
    cotangent = torch.ones_like(leaves[0]) if train else None
    small = [x.requires_grad_(train) for x in draw(1, 600, 600, dtype)]

    def call(inputs: list[Tensor], cotangent: Tensor | None) -> list[Tensor]:
        result = dsa(*inputs, topk=TOPK, stage="sparse" if train else "frozen", engine="cpu")
        outputs = [result.out, result.indices]
        if cotangent is not None:
            outputs += torch.autograd.grad((result.out, result.loss), inputs, (cotangent, torch.ones(())))
        return outputs

    call(small, torch.ones_like(small[0]) if train else None)  # threads and code are there before the mark
    Path("/proc/self/clear_refs").write_text("5")
    before = surroundings.resident("VmRSS")
    outputs = call(leaves, cotangent)
    peak = surroundings.resident("VmHWM")
    given = [*leaves, *([] if cotangent is None else [cotangent])]
    made, read = (sum(x.numel() * x.element_size() for x in tensors) for tensors in (outputs, given))
    extra = peak - before - made
    return {"inputs": read, "outputs": made, "peak": peak - before, "extra": extra, "share": extra / (read + made)}


def memory_elsewhere(length: int, dtype: str, train: bool) -> dict:
    command = [sys.executable, __file__, "--memory", str(length), dtype, "training" if train else "forward"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192], help="of forward passes")
    parser.add_argument("--training", type=int, nargs="*", default=[4096], help="lengths of forward + backward passes")
    parser.add_argument("--decoding", type=int, nargs="*", default=[65536], help="lengths of caches")
    parser.add_argument("--peak", type=int, nargs="*", default=[8192], help="lengths to measure memory at")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        length, dtype, kind = arguments.memory
        print(json.dumps(memory(int(length), DTYPES[dtype], kind == "training")))
        return
    engine_for(torch.zeros(1), engine="cpu")
    record = {
        "setting": {"heads": HEADS, "width": WIDTH, "index_heads": INDEX_HEADS, "index_width": INDEX_WIDTH, "k": TOPK},
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
        "instruction_set": LIBRARY.inazuma_kernels().decode(),
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "results": [],
    }
    plan = [
        *((forward, n) for n in arguments.lengths),
        *((training, n) for n in arguments.training),
        *((decoding, n) for n in arguments.decoding),
    ]
    for name in arguments.dtypes:
        for measure, length in plan:
            result = measure(length, DTYPES[name], arguments.repeats)
            record["results"].append({"what": measure.__name__, "length": length, "dtype": name, **result})
            for label, one in result.items() if measure is decoding else (("", result),):
                ours, theirs = one["median"]["ours"], one["median"]["dense"]
                print(
                    f"{name} {measure.__name__} {label} {length:,}: {ours:.4g} s, dense {theirs:.4g} s, "
                    f"{one['ratio']:.1f} times faster",
                    flush=True,
                )
        for length in arguments.peak:
            for train in (False, True):
                result = memory_elsewhere(length, name, train)
                what = "memory of training" if train else "memory of forward"
                record["results"].append({"what": what, "length": length, "dtype": name, **result})
                print(
                    f"{name} {what} {length:,}: {result['extra'] / 1e6:,.0f} MB extra, "
                    f"{result['share']:.2f} of inputs, indices and outputs",
                    flush=True,
                )
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
