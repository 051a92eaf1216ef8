"""The Triton engine on a GPU: `python benchmarks/gpu.py`.

Checks every kernel against the float64 definition, in bfloat16 and, up to width 128, in float16 and float32; then times
it at the sizes of large models and, forward and backward, beside PyTorch's `scaled_dot_product_attention`. The record,
with the machine, the versions and every raw time, goes to `benchmarks/results/gpu.json`. Measurements that would begin
after `LIMIT` seconds are listed as left out; a check that fails ends the run without a record.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inazuma.errors import UserError
from inazuma.files import write_json
from inazuma.ops import dsa, index_loss, select_tokens, sparse_attention
from inazuma.ops.dispatch import engine_for
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "gpu.json"
LIMIT = 400.0
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference from float64, relative to the largest value."""
CHECKED = {
    "absorbed": {"heads": 128, "groups": 1, "width": 576, "value_width": 512},
    "absorbed, 8 heads": {"heads": 8, "groups": 1, "width": 576, "value_width": 512},
    "values apart": {"heads": 16, "groups": 1, "width": 576, "value_width": 512},
    "grouped": {"heads": 32, "groups": 8, "width": 128, "value_width": 128},
    "odd": {"heads": 5, "groups": 5, "width": 33, "value_width": 17},
}


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def train(leaves: list[Tensor], absorbed: bool, stage: str, engine: str, indices: Tensor | None) -> list[Tensor]:
    """Output, loss and all gradients of one stage."""
    q, k, v, *index = leaves
    v = k[..., : v.shape[-1]] if absorbed else v
    sets = {} if indices is None else {"indices": indices}
    result = dsa(q, k, v, *index, topk=70, stage=stage, engine=engine, **sets)
    gradients = torch.autograd.grad(
        (result.out, result.loss),
        leaves,
        (torch.ones_like(result.out), torch.ones_like(result.loss)),
        allow_unused=True,
        materialize_grads=True,
    )
    return [result.out, result.loss, *gradients]


def check(name: str, dtype: torch.dtype) -> dict:
    """The relative error of every value and gradient; the selection of whole-number scores must be exact."""
    heads, groups, width, value_width = CHECKED[name].values()
    B, T, S = 2, 77, 301
    whole = [torch.randint(-2, 3, shape, device="cuda") for shape in ((B, T, 9, 32), (B, S, 32), (B, T, 9))]
    index = [x.to(dtype) for x in whole]
    shapes = (B, T, heads, width), (B, S, groups, width), (B, S, groups, value_width)
    leaves = [*(draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)), *index]
    chosen = select_tokens(*index, 70, engine="triton")
    if not torch.equal(chosen, select_tokens(*(x.double() for x in index), 70, engine="reference")):
        raise UserError(f"{name}, {dtype}: the selection differs from the definition's")
    errors = {}
    for stage, sets in (("sparse", chosen), ("dense", None)):
        absorbed = name.startswith("absorbed")
        ours = train([x.clone().requires_grad_() for x in leaves], absorbed, stage, "triton", sets)
        again = train([x.clone().requires_grad_() for x in leaves], absorbed, stage, "triton", sets)
        theirs = train([x.double().requires_grad_() for x in leaves], absorbed, stage, "reference", sets)
        if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
            raise UserError(f"{name}, {dtype}, {stage}: two runs differ")
        labels = "out", "loss", "dq", "dk", "dv", "dindex_q", "dindex_k", "dindex_w"
        for label, a, e in zip(labels, ours, theirs, strict=True):
            error = float((a.double() - e).abs().max() / e.abs().max().clamp(min=1e-6))
            errors[f"{stage} {label}"] = error
            if not error <= TOLERANCE[dtype]:
                raise UserError(f"{name}, {dtype}, {stage}: {label} is {error:.1e} from the definition's")
    return errors


def seconds(call: Callable[[], object], repeats: int = 5) -> list[float]:
    """Seconds of each call on the GPU, after one that compiles."""
    call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def random_selection(T: int, S: int, K: int) -> Tensor:
    """K different keys of S for each query, ascending, int32 `[1,T,K]`."""
    rows = [torch.randperm(S, device="cuda")[:K].sort().values for _ in range(T)]
    return torch.stack(rows)[None].int()


def latent(heads: int, T: int, S: int) -> dict:
    """Absorbed attention, Dk 576, Dv 512, k 2048, forward and backward."""
    q, k = draw(1, T, heads, 576).requires_grad_(), draw(1, S, 1, 576, seed=1).requires_grad_()
    indices = random_selection(T, S, 2048)

    def forward() -> Tensor:
        return sparse_attention(q, k, k[..., :512], indices, scale=192**-0.5, engine="triton")[0]

    with torch.no_grad():
        result = {"forward": seconds(forward)}
    out = forward()
    cotangent = torch.ones_like(out)
    result["backward"] = seconds(lambda: torch.autograd.grad(out, (q, k), cotangent, retain_graph=True))
    return result


def indexer(T: int, S: int) -> dict:
    """Selection of 2048 keys by 64 heads of width 128, for the last T queries of S."""
    q, k, w = draw(1, T, 64, 128), draw(1, S, 128, seed=1), draw(1, T, 64, dtype=torch.float32, seed=2)
    return {"selection": seconds(lambda: select_tokens(q, k, w, 2048, engine="triton"), repeats=3)}


def loss(T: int, S: int) -> dict:
    """The sparse loss with its gradients, 128 heads of absorbed attention and 64 index heads."""
    index = [draw(1, T, 64, 128), draw(1, S, 128, seed=1), draw(1, T, 64, dtype=torch.float32, seed=2)]
    leaves = [x.requires_grad_() for x in index]
    q, k = draw(1, T, 128, 576), draw(1, S, 1, 576, seed=1)
    indices = random_selection(T, S, 2048)
    _, lse = sparse_attention(q, k, k[..., :512], indices, scale=192**-0.5, engine="triton")

    def step() -> object:
        value = index_loss(*leaves, q, k, lse, indices=indices, scale=192**-0.5, engine="triton")
        return torch.autograd.grad(value, leaves)

    return {"loss": seconds(step)}


def against_dense(length: int) -> dict:
    """Forward and backward of sparse training and of causal dense attention: 16 heads, one group, width 128, k 2048,
    4 index heads of width 64."""
    sizes = (1, length, 16, 128), (1, length, 1, 128), (1, length, 1, 128), (1, length, 4, 64), (1, length, 64)
    leaves = [draw(*size, seed=i).requires_grad_() for i, size in enumerate(sizes)]
    leaves.append(draw(1, length, 4, dtype=torch.float32, seed=6).requires_grad_())
    cotangent = torch.ones_like(leaves[0])

    def ours() -> object:
        result = dsa(*leaves, topk=2048, stage="sparse", engine="triton")
        return torch.autograd.grad((result.out, result.loss), leaves, (cotangent, torch.ones_like(result.loss)))

    def dense() -> object:
        q, k, v = (x.expand(-1, -1, 16, -1).transpose(1, 2) for x in leaves[:3])
        out = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return torch.autograd.grad(out, leaves[:3], cotangent)

    return {"dense": seconds(dense, repeats=3), "sparse": seconds(ours, repeats=3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("gpu.py: PyTorch finds no GPU here; nothing was measured")
    engine_for(torch.zeros(1, device="cuda"), engine="triton")
    started = time.perf_counter()
    device = torch.cuda.get_device_properties(0)
    record = {
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
        "gpu": {"name": device.name, "memory": device.total_memory, "processors": device.multi_processor_count},
        "checks": [
            {"what": name, "dtype": str(dtype)[6:], "errors": check(name, dtype)}
            for name in CHECKED
            for dtype in TOLERANCE
            if dtype == torch.bfloat16 or CHECKED[name]["width"] <= 128
        ],
        "results": [],
        "left_out": [],
    }
    plan = [
        (latent, {"heads": 128, "T": 4096, "S": 32768}),
        (latent, {"heads": 8, "T": 2119, "S": 32768}),
        (loss, {"T": 4096, "S": 32768}),
        (indexer, {"T": 8192, "S": 131072}),
        *((against_dense, {"length": length}) for length in (32768, 65536, 131072)),
    ]
    for measure, sizes in plan:
        if time.perf_counter() - started > LIMIT:
            record["left_out"].append({"what": measure.__name__, **sizes})
            continue
        torch.cuda.reset_peak_memory_stats()
        times = measure(**sizes)
        peak = torch.cuda.max_memory_allocated()
        record["results"].append({"what": measure.__name__, **sizes, "seconds": times, "peak_bytes": peak})
        medians = ", ".join(f"{name} {1e3 * statistics.median(values):.2f} ms" for name, values in times.items())
        print(measure.__name__, *(f"{name}={value}" for name, value in sizes.items()), medians, flush=True)
    record["elapsed"] = time.perf_counter() - started
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
