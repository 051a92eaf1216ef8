"""The Triton engine on a GPU: `python benchmarks/gpu.py`, or a stage: `... check`, `... kernels`, `... training`.

    check      every kernel against the float64 definition, in bfloat16 and, up to width 128, in float16 and float32
    kernels    attention, selection and the loss at the sizes of large models, and the two choices that only a GPU can
               settle: queries with few heads in packs or not, gradients of kept keys added in order or atomically
    auto       every engine that can take a GPU's tensors, from one token on: what `engine="auto"` should take
    training   forward and backward beside PyTorch's `scaled_dot_product_attention`, and the length from which ours wins

The record, with the machine, the versions and every raw time, goes to `benchmarks/results/gpu.json` after each entry.
No entry begins after `--seconds`; the same command then goes on where it stopped, with what failed once more. The exit
status is 1 where something did. `TRITON_INTERPRET=1 python benchmarks/gpu.py --toy --out X` runs all of it on a CPU, in
minutes, to find this file's mistakes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inazuma.errors import UserError
from inazuma.files import read_json, write_json
from inazuma.ops import dispatch, dsa, index_loss, select_tokens, sparse_attention
from inazuma.ops.dispatch import engine_for
from inazuma.ops.triton import tiles
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "gpu.json"
TOY = "--toy" in sys.argv
DEVICE, DTYPE = ("cpu", torch.float16) if TOY else ("cuda", torch.bfloat16)
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Largest difference from float64, relative to the largest value."""


def draw(*shape: int, dtype: torch.dtype = DTYPE, seed: int = 0) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)


@contextmanager
def chosen(packed: bool, deterministic: bool) -> Iterator[None]:
    """Whether the engine makes packs, whatever the shape, and whether it adds gradients in order."""
    with patch.object(tiles, "packs", lambda *_: packed), patch.object(dispatch, "deterministic", deterministic):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def train(leaves: list[Tensor], absorbed: bool, stage: str, engine: str, kept: Tensor) -> dict[str, Tensor]:
    """Output, loss and all gradients of one stage."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    q, k, v, *index = leaves
    v = k[..., : v.shape[-1]] if absorbed else v
    sets = {"indices": kept} if stage == "sparse" else {}
    result = dsa(q, k, v, *index, topk=kept.shape[-1], stage=stage, engine=engine, **sets)
    outputs = result.out, result.loss
    cotangents = [torch.ones_like(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True, materialize_grads=True)
    labels = "out", "loss", "dq", "dk", "dv", "dindex_q", "dindex_k", "dindex_w"
    return {label: x.detach() for label, x in zip(labels, (*outputs, *gradients), strict=True)}


def check(name: str, dtype: str, heads: int, groups: int, width: int, value_width: int, T: int, S: int, K: int) -> dict:
    """The relative error of every value and gradient; the selection of whole-number scores must be exact."""
    B, exact = 2, getattr(torch, dtype)
    whole = [torch.randint(-2, 3, shape, device=DEVICE) for shape in ((B, T, 9, 32), (B, S, 32), (B, T, 9))]
    index = [x.to(exact) for x in whole]
    shapes = (B, T, heads, width), (B, S, groups, width), (B, S, groups, value_width)
    leaves = [*(draw(*shape, dtype=exact, seed=i) for i, shape in enumerate(shapes)), *index]
    kept = select_tokens(*index, K, engine="triton")
    if not torch.equal(kept, select_tokens(*(x.double() for x in index), K, engine="reference")):
        raise UserError("the selection differs from the definition's")
    errors, absorbed = {}, name.startswith("absorbed")
    for stage in ("sparse", "dense"):
        theirs = train([x.double() for x in leaves], absorbed, stage, "reference", kept)
        for packed, deterministic in itertools.product((False, True), (True, False)):
            if (stage == "dense" and (packed or not deterministic)) or (packed and heads > 16 * groups):
                continue
            with chosen(packed, deterministic):
                ours, again = (train(leaves, absorbed, stage, "triton", kept) for _ in range(2))
            if deterministic and not all(torch.equal(ours[x], again[x]) for x in ours):
                raise UserError(f"{stage}: two runs differ")
            way = f"{stage}{', packs' * packed}{', atomic' * (not deterministic)}"
            for label, e in theirs.items():
                error = float((ours[label].double() - e).abs().max() / e.abs().max().clamp(min=1e-6))
                if not error <= TOLERANCE[dtype]:
                    raise UserError(f"{way}: {label} is {error:.1e} from the definition's")
                errors[f"{way}: {label}"] = error
    return {"errors": errors}


def check_selection(T: int, S: int, K: int, largest: int) -> dict:
    """Selection in long rows, of scores that are whole numbers: the larger `largest`, the fewer of them are equal."""
    shapes = (1, T, 9, 32), (1, S, 32), (1, T, 9)
    index = [torch.randint(-largest, largest + 1, shape, device=DEVICE).to(DTYPE) for shape in shapes]
    kept = select_tokens(*index, K, engine="triton")
    wrong = kept != select_tokens(*(x.double() for x in index), K, engine="reference")
    if wrong.any():
        raise UserError(f"{int(wrong.any(-1).sum())} of {T} rows differ from the definition's")
    return {"errors": {"selection": float(wrong.sum())}}


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object], repeats: int = 5) -> list[float]:
    """Seconds of each call on the GPU, after one that compiles."""
    call()
    times = []
    for _ in range(1 if TOY else repeats):
        if TOY:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
            continue
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def teraflops(products: float, times: list[float]) -> float:
    """10^12 operations a second at the median; a product and its addition are two."""
    return 2 * products / statistics.median(times) / 1e12


def ceilings(size: int) -> dict:
    """What this GPU does at most: a product of two square matrices, and a copy, whose bytes are read and written."""
    x, y, large = draw(size, size), draw(size, size, seed=1), draw(size, 8 * size)
    copy = torch.empty_like(large)
    times = {"product": seconds(lambda: x @ y), "copy": seconds(lambda: copy.copy_(large))}
    moved = 2 * large.numel() * large.element_size()
    return {
        "seconds": times,
        "teraflops": {"product": teraflops(size**3, times["product"])},
        "bytes_per_second": moved / statistics.median(times["copy"]),
    }


def selection(T: int, S: int, K: int, alike: bool) -> Tensor:
    """Causal, of the last T of S queries, int32 `[1,T,K]`: at random, or most of it as the neighbours'."""
    generator = torch.Generator(DEVICE).manual_seed(3)
    common = 2 * torch.rand(S, generator=generator, device=DEVICE) if alike else 0
    rows = []
    for begin in range(S - T, S, 256):
        last = torch.arange(begin, min(begin + 256, S), device=DEVICE)[:, None]
        scores = common + torch.rand(len(last), S, generator=generator, device=DEVICE)
        hidden = torch.arange(S, device=DEVICE) > last
        best = scores.masked_fill(hidden, -1).topk(min(K, S)).indices
        rows.append(best.masked_fill(best > last, S).sort().values)
    kept = torch.cat(rows)
    return torch.nn.functional.pad(kept.masked_fill(kept == S, -1), (0, K - kept.shape[1]), value=-1)[None].int()


def union_of_8(kept: Tensor) -> float:
    """How many different keys 8 neighbours keep together, over what one of them keeps: a mean over up to 64 packs."""
    packs = kept[0].split(8)[:64]
    return statistics.mean(len(pack[pack >= 0].unique()) * len(pack) / int((pack >= 0).sum()) for pack in packs)


def latent(heads: int, T: int, S: int, K: int, alike: bool, packed: bool) -> dict:
    """Absorbed attention, Dk 576, Dv 512: forward with two products a pair, backward with five."""
    Dk, Dv = (24, 16) if TOY else (576, 512)
    q, k = draw(1, T, heads, Dk).requires_grad_(), draw(1, S, 1, Dk, seed=1).requires_grad_()
    kept = selection(T, S, K, alike)
    pairs = heads * int((kept >= 0).sum())
    result: dict[str, Any] = {"seconds": {}, "teraflops": {}}
    for name, deterministic in (("backward", True), ("backward, atomic", False)):
        with chosen(packed, deterministic):

            def forward() -> Tensor:
                return sparse_attention(q, k, k[..., :Dv], kept, scale=192**-0.5, engine="triton")[0]

            if deterministic:
                with torch.no_grad():
                    result["seconds"]["forward"] = seconds(forward)
            out = forward()
            cotangent = torch.ones_like(out)

            def backward(out: Tensor = out, cotangent: Tensor = cotangent) -> object:
                return torch.autograd.grad(out, (q, k), cotangent, retain_graph=True)

            result["seconds"][name] = seconds(backward)
    for name, times in result["seconds"].items():
        products = Dk + Dv if name == "forward" else 3 * Dk + 2 * Dv
        result["teraflops"][name] = teraflops(pairs * products, times)
    if heads <= 16:
        result["union_of_8"] = union_of_8(kept)
    return result


def indexer(T: int, S: int, K: int, heads: int, width: int) -> dict:
    """Selection of K keys for the last T queries of S, and its scores alone by their arithmetic."""
    q, k = draw(1, T, heads, width), draw(1, S, width, seed=1)
    w = draw(1, T, heads, dtype=torch.float32, seed=2)
    times = seconds(lambda: select_tokens(q, k, w, K, engine="triton"), repeats=3)
    pairs = T * S - T * (T - 1) // 2
    return {"seconds": {"selection": times}, "teraflops": {"selection": teraflops(pairs * heads * width, times)}}


def loss(T: int, S: int, K: int, heads: int, index_heads: int, width: int) -> dict:
    """The sparse loss with its gradients, beside absorbed attention."""
    Dk, Dv = (24, 16) if TOY else (576, 512)
    index = draw(1, T, index_heads, width), draw(1, S, width, seed=1)
    leaves = [*index, draw(1, T, index_heads, dtype=torch.float32, seed=2)]
    leaves = [x.requires_grad_() for x in leaves]
    q, k = draw(1, T, heads, Dk), draw(1, S, 1, Dk, seed=1)
    kept = selection(T, S, K, alike=True)
    _, lse = sparse_attention(q, k, k[..., :Dv], kept, scale=192**-0.5, engine="triton")

    def step() -> object:
        value = index_loss(*leaves, q, k, lse, indices=kept, scale=192**-0.5, engine="triton")
        return torch.autograd.grad(value, leaves)

    result = {}
    for name, deterministic in (("loss", True), ("loss, atomic", False)):
        with patch.object(dispatch, "deterministic", deterministic):
            result[name] = seconds(step)
    return {"seconds": result}


def against_dense(length: int, K: int, heads: int, width: int) -> dict:
    """Forward and backward of sparse training, selection and loss included, and of causal dense attention: one
    key-value head, 4 index heads of width 64."""
    sizes = *((1, length, n, width) for n in (heads, 1, 1)), (1, length, 4, 64), (1, length, 64)
    leaves = [draw(*size, seed=i).requires_grad_() for i, size in enumerate(sizes)]
    leaves.append(draw(1, length, 4, dtype=torch.float32, seed=6).requires_grad_())
    cotangent = torch.ones_like(leaves[0])

    def sparse() -> object:
        result = dsa(*leaves, topk=K, stage="sparse", engine="triton")
        return torch.autograd.grad((result.out, result.loss), leaves, (cotangent, torch.ones_like(result.loss)))

    def dense() -> object:
        q, k, v = (x.expand(-1, -1, heads, -1).transpose(1, 2) for x in leaves[:3])
        out = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return torch.autograd.grad(out, leaves[:3], cotangent)

    times = {"dense": seconds(dense, repeats=3), "sparse": seconds(sparse, repeats=3)}
    with patch.object(dispatch, "deterministic", False):
        times["sparse, atomic"] = seconds(sparse, repeats=3)
    return {"seconds": times}


def engines(T: int, S: int, K: int, heads: int, learns: bool) -> dict:
    """Selection and attention of the last T of S queries, with the loss and all gradients where it `learns`."""
    width = 16 if TOY else 128
    sizes = (1, T, heads, width), (1, S, 1, width), (1, S, 1, width), (1, T, 4, width), (1, S, width)
    leaves = [draw(*size, seed=i).requires_grad_(learns) for i, size in enumerate(sizes)]
    leaves.append(draw(1, T, 4, dtype=torch.float32, seed=6).requires_grad_(learns))
    last = torch.arange(S - T, S, dtype=torch.int32, device=DEVICE)[None]
    spans = {"first": torch.zeros_like(last), "last": last}

    def step(engine: str) -> object:
        result = dsa(*leaves, topk=K, stage="sparse" if learns else "frozen", engine=engine, **spans)
        if not learns:
            return result.out
        return torch.autograd.grad((result.out.sum(), result.loss), leaves)

    return {"seconds": {name: seconds(lambda name=name: step(name)) for name in ("reference", "triton")}}


def crossover(entries: list[dict], way: str) -> float | None:
    """The length at which `way` takes as long as dense attention: between two measured lengths, on a line through the
    logarithms of length and ratio; None where it is outside of them."""
    points = []
    for entry in sorted(
        (e for e in entries if e["what"] == "against_dense" and "seconds" in e), key=lambda e: e["length"]
    ):
        dense, ours = (statistics.median(entry["seconds"][name]) for name in ("dense", way))
        points.append((math.log(entry["length"]), math.log(ours / dense)))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 > 0 >= y1:
            return math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------

CHECKED = {
    "absorbed": (128, 1, 576, 512),
    "absorbed, 8 heads": (8, 1, 576, 512),
    "values apart": (16, 1, 576, 512),
    "grouped": (32, 8, 128, 128),
    "odd": (5, 5, 33, 17),
}
"""Heads, groups, width and value width."""
TOY_CHECKED = {"absorbed, 8 heads": (8, 1, 24, 16), "grouped": (4, 2, 16, 16)}


def plan() -> dict[str, list[tuple[Callable[..., dict], dict[str, Any]]]]:
    """What each stage measures: a function and its arguments. What is asked first comes first."""
    lengths = {"T": 5, "S": 11, "K": 4} if TOY else {"T": 77, "S": 301, "K": 70}
    checks = []
    for name, shape in (TOY_CHECKED if TOY else CHECKED).items():
        widths = dict(zip(("heads", "groups", "width", "value_width"), shape, strict=True))
        for dtype in ("float16", "float32") if TOY else ("bfloat16", "float16", "float32"):
            if dtype == "bfloat16" or widths["width"] <= 128:
                checks.append((check, {"name": name, "dtype": dtype, **widths, **lengths}))
    for largest in (1, 8):
        rows = {"T": 3, "S": 4500, "K": 9} if TOY else {"T": 500, "S": 70000, "K": 2048}
        checks.append((check_selection, {**rows, "largest": largest}))
    many, K = (20, 4) if TOY else (128, 2048)
    short, T, S, far = (13, 6, 24, 40) if TOY else (2119, 4096, 32768, 131072)
    few = [
        (latent, {"heads": 8, "T": min(short, keys), "S": keys, "K": K, "alike": alike, "packed": packed})
        for keys, alike, packed in (
            (short, True, False),
            (short, True, True),
            *itertools.product((S,), (True, False), (False, True)),
        )
    ]
    kernels = [
        (ceilings, {"size": 64 if TOY else 8192}),
        (latent, {"heads": many, "T": T, "S": S, "K": K, "alike": True, "packed": False}),
        *few[:2],
        (indexer, {"T": T, "S": far, "K": K, "heads": 2 if TOY else 64, "width": 16 if TOY else 128}),
        *few[2:],
    ]
    for packed in (False, True):
        kernels.append((latent, {"heads": 16, "T": T, "S": S, "K": K, "alike": True, "packed": packed}))
    index = {"index_heads": 2 if TOY else 64, "width": 16 if TOY else 128}
    kernels.append((loss, {"T": T, "S": S, "K": K, "heads": many, **index}))
    layer = {"K": K, "heads": 4, "width": 16} if TOY else {"K": K, "heads": 16, "width": 128}
    ladder = (8, 16) if TOY else (32768, 65536, 131072, 16384, 8192)
    auto = []
    for learns, last, keys in ((False, 1, 64), (False, 1, short), (False, 1, S), (True, 64, 64), (True, short, short)):
        auto.append((engines, {"T": last, "S": keys, "K": 4 if TOY else 256, "heads": 4, "learns": learns}))
    training = [(against_dense, {"length": n, **layer}) for n in ladder]
    return {"check": checks, "kernels": kernels, "auto": auto, "training": training}


def run_entry(measure: Callable[..., dict], sizes: dict[str, Any]) -> dict:
    """The entry of one measurement, or what went wrong: a GPU's time is short, and the others go on."""
    entry = {"what": measure.__name__, **sizes}
    if not TOY:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    try:
        entry |= measure(**sizes)
    except Exception as error:  # whatever a compiler or a driver raises belongs in the record
        entry["failed"] = f"{type(error).__name__}: {error}"[:2000]
    entry["elapsed"] = time.perf_counter() - started
    if not TOY:
        entry["peak_bytes"] = torch.cuda.max_memory_allocated()
    return entry


def line(entry: dict) -> str:
    shown = {name: value for name, value in entry.items() if isinstance(value, (int, str)) and name != "failed"}
    text = " ".join(f"{name}={value}" for name, value in shown.items() if name not in ("what", "peak_bytes"))
    if "failed" in entry:
        return f"FAILED {entry['what']} {text}: {entry['failed'].splitlines()[0]}"
    if "errors" in entry:
        return f"{entry['what']} {text}: largest error {max(entry['errors'].values()):.1e}"
    rates = entry.get("teraflops", {})
    for name, times in entry["seconds"].items():
        rate = f" ({rates[name]:.0f} TFLOP/s)" if name in rates else ""
        text += f"; {name} {1e3 * statistics.median(times):.2f} ms{rate}"
    return f"{entry['what']} {text}"


def surrounded() -> dict[str, Any]:
    """What a record begins with."""
    record = {"code": surroundings.code(), "machine": surroundings.machine(), "packages": surroundings.packages()}
    if not TOY:
        device = torch.cuda.get_device_properties(0)
        processors = device.multi_processor_count
        record["gpu"] = {"name": device.name, "memory": device.total_memory, "processors": processors}
    return record


def main() -> int:
    stages = plan()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(stages)}; all by default")
    parser.add_argument("--out", type=Path, default=None if TOY else RESULT, required=TOY)
    parser.add_argument("--seconds", type=float, default=480, help="no entry begins after so many (default 480)")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on a CPU, in Triton's interpreter")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(stages):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(stages)}")
    if not TOY and not torch.cuda.is_available():
        raise UserError("gpu.py: PyTorch finds no GPU here; nothing was measured")
    engine_for(torch.zeros(1, device=DEVICE), engine="triton")
    started = time.perf_counter()
    record = surrounded()
    if arguments.out.exists():
        before = read_json(arguments.out)
        if changed := [name for name in record if before.get(name) != record[name]]:
            raise UserError(f"{arguments.out}: is of another {', '.join(changed)}; move it away to begin anew")
        record = before
    entries = record.setdefault("entries", [])
    left = 0
    for stage in arguments.stages or stages:
        for measure, sizes in stages[stage]:
            named = {"what": measure.__name__, **sizes}
            same = [x for x in entries if named.items() <= {n: v for n, v in x.items() if n in named}.items()]
            if any("failed" not in x for x in same):
                continue
            if time.perf_counter() - started > arguments.seconds:
                left += 1
                continue
            entry = run_entry(measure, sizes)
            entries[:] = [x for x in entries if x not in same] + [entry]
            record["crossover"] = {way: crossover(entries, way) for way in ("sparse", "sparse, atomic")}
            arguments.out.parent.mkdir(exist_ok=True)
            write_json(arguments.out, record)
            print(line(entry), flush=True)
    failed = sum("failed" in x for x in entries)
    print(f"{len(entries)} entries, {failed} failed, {left} left for the next command", record.get("crossover"))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
