"""What `engine="auto"` should take on a CPU: `python benchmarks/auto.py`.

Two questions, over many shapes. Which engine is faster at the whole of DSA, forward and with the backward pass? And
where k keeps every key, is reading the keys in place (dense attention, which `dsa` does there) faster than gathering
them? Both sides take turns; figures are medians. The record goes to `benchmarks/results/auto.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from inazuma.files import write_json
from inazuma.ops import dense_attention, dsa, sparse_attention
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "auto.json"
LENGTHS = (1, 16, 64, 256, 1024, 2048)
SHAPES = {"gqa": (8, 1, 64, 64), "mha": (4, 4, 32, 32), "absorbed": (8, 1, 80, 64)}
"""Query heads, key-value heads, widths of keys and values."""
KEPT = (64, 256)


def draw(length: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    H, G, Dk, Dv = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(length, H, Dk), (length, G, Dk), (length, G, Dv), (length, 8, 32), (length, 32), (length, 8)]
    tensors = [torch.randn(1, *size, generator=generator).to(dtype) for size in sizes]
    return [*tensors[:5], tensors[5].float()]


def take_turns(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def engines(inputs: list[Tensor], k: int, train: bool) -> dict[str, Callable[[], object]]:
    leaves = [x.clone().requires_grad_(train) for x in inputs]

    def call(engine: str) -> Callable[[], object]:
        def run() -> None:
            result = dsa(*leaves, topk=k, stage="sparse" if train else "frozen", engine=engine)
            if train:
                torch.autograd.grad(result.out.float().sum() + result.loss, leaves)

        return run

    return {name: call(name) for name in ("cpu", "reference")}


def readings(inputs: list[Tensor], train: bool) -> dict[str, Callable[[], object]]:
    """Every visible key, in place or gathered."""
    leaves = [x.clone().requires_grad_(train) for x in inputs[:3]]
    length = leaves[0].shape[1]
    keys = torch.arange(length, dtype=torch.int32)
    indices = torch.where(keys <= keys[:, None], keys, -1)[None]

    def run(attend: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], object]:
        def call() -> None:
            out, _ = attend()
            if train:
                torch.autograd.grad(out.float().sum(), leaves)

        return call

    return {
        "in place": run(lambda: dense_attention(*leaves, engine="cpu")),
        "gathered": run(lambda: sparse_attention(*leaves, indices, engine="cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    results = []
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for length in arguments.lengths:
                inputs = draw(length, shape, dtype)
                for train in (False, True):
                    plan = {f"engines, k = {k}": engines(inputs, k, train) for k in KEPT}
                    plan["readings"] = readings(inputs, train)
                    for what, calls in plan.items():
                        with torch.set_grad_enabled(train):
                            seconds = take_turns(calls, arguments.repeats)
                        fast, slow = seconds.values()
                        one = {"shape": name, "dtype": str(dtype).removeprefix("torch."), "length": length}
                        one |= {"what": what, "training": train, "seconds": seconds, "ratio": slow / fast}
                        results.append(one)
    for what in sorted({one["what"] for one in results}):
        ratios = sorted(one["ratio"] for one in results if one["what"] == what)
        lost = [one for one in results if one["what"] == what and one["ratio"] < 1]
        print(f"{what}: {ratios[0]:.2f} to {ratios[-1]:.1f} times, median {statistics.median(ratios):.1f}")
        for one in lost:
            print("   slower:", one["shape"], one["dtype"], one["length"], one["training"], f"{one['ratio']:.2f}")
    record = {"results": results, "repeats": arguments.repeats, "threads": torch.get_num_threads()}
    record |= {"code": surroundings.code(), "machine": surroundings.machine(), "packages": surroundings.packages()}
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
