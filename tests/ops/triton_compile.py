"""Compiles every kernel that the Triton engine's operators launch, for GPUs that are not there, and prints what the
compilers say of each as JSON: `python -m tests.ops.triton_compile sm_86`, or only `... sm_86 absorbed narrow`.

The operators run as they are, on small tensors, but a launch compiles instead of running. What is compiled is thus
what a GPU would get: the same constants, dtypes, divisibility and tile sizes. A process of its own, because the
interpreter, in which the other tests run, takes the compiler's place once Triton is imported.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from inazuma.ops import dispatch
from inazuma.ops.contract import resolve_spans
from inazuma.ops.pool import Pool
from inazuma.ops.triton import loss_operator, operators, paged, rotation, tiles
from tests.ops.test_triton_compile import SHARED_MEMORY

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WIDTHS = {
    "absorbed": {"H": 128, "G": 1, "Dk": 576, "Dv": 512},
    "absorbed, 8 heads": {"H": 8, "G": 1, "Dk": 576, "Dv": 512},
    "absorbed, 8 heads, unaligned": {"H": 8, "G": 1, "Dk": 576, "Dv": 512},
    "latent, values apart": {"H": 16, "G": 1, "Dk": 576, "Dv": 512},
    "wide": {"H": 16, "G": 2, "Dk": 256, "Dv": 256},
    "grouped": {"H": 32, "G": 8, "Dk": 128, "Dv": 128},
    "narrow": {"H": 8, "G": 1, "Dk": 64, "Dv": 64},
}
"""Widths of the attention that are compiled for each target, in bfloat16; the last two in the other dtypes too. In
"absorbed" the values are the first columns of the keys; "unaligned" tensors begin 2 bytes past a multiple of 16."""
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def target_of(name: str) -> GPUTarget:
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


def source_of(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """The kernel specialised to a launch's arguments, as Triton's own launcher does it."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    return ASTSource(kernel, signature, constants, attributes)


def report(target: GPUTarget, compiled: Any) -> dict[str, int]:
    """Shared memory and spills in bytes, registers per thread, and how many tensor-core instructions there are."""
    if target.backend == "cuda":
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = [CUOBJDUMP, "--dump-resource-usage", file.name]
            text = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK"))
        products = len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", compiled.asm["ptx"]))
    else:
        text = compiled.asm["amdgcn"]
        registers, stack = (
            int(re.search(rf"\.{name}: *(\d+)", text)[1]) for name in ("vgpr_count", "private_segment_fixed_size")
        )
        products = len(re.findall(r"\bv_mfma_", text))
    return {"shared": compiled.metadata.shared, "spilled": stack, "registers": registers, "products": products}


def everything(widths: dict[str, int], dtype: torch.dtype, absorbed: bool, unaligned: bool) -> None:
    """Launches every kernel, with every flag, on tensors of these widths."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(unaligned + math.prod(shape), dtype=dtype)[int(unaligned) :].view(shape)

    H, G, Dk, Dv = widths.values()
    B, T, S, K, heads, width = 1, 128, 256, 64, 64, 128
    q, k = zeros(B, T, H, Dk).requires_grad_(), zeros(B, S, G, Dk).requires_grad_()
    v = k[..., :Dv] if absorbed else zeros(B, S, G, Dv)
    indices = torch.arange(K, dtype=torch.int32).expand(B, T, K).contiguous()
    spans = resolve_spans(None, None, q, S)
    index = (zeros(*shape) for shape in ((B, T, heads, width), (B, S, width), (B, T, heads)))
    index_q, index_k, index_w = (x.requires_grad_() for x in index)
    operators.select_tokens(index_q.detach(), index_k.detach(), index_w.detach(), K, spans)
    teacher = q.detach(), k.detach(), torch.zeros(B, T, H)
    loss_operator.index_loss(index_q, index_k, index_w, *teacher, None, spans, 1.0)
    for sink in (None, torch.zeros(H)):
        operators.dense_attention(q, k, v, spans, 1.0, sink)[0].sum().backward()
    for sink, packed, deterministic in itertools.product((None, torch.zeros(H)), (True, False), (True, False)):
        operators.tiles.packs = lambda *_, packed=packed: packed
        dispatch.deterministic = deterministic
        loss_operator.index_loss(index_q, index_k, index_w, *teacher, indices, None, 1.0)
        operators.sparse_attention(q, k, v, indices, 1.0, sink)[0].sum().backward()


def pages(widths: dict[str, int], dtype: torch.dtype, absorbed: bool) -> None:
    """Launches the kernels of serving, for caches that are kept in this dtype and, of bfloat16, in fp8."""
    H, G, Dk, Dv = widths.values()
    formats = {torch.float32: ["float32"], torch.bfloat16: ["bfloat16", "fp8"]}.get(dtype, [])
    q, row, last = torch.zeros(3, H, Dk), torch.arange(3, dtype=torch.int32), torch.full((3,), 100, dtype=torch.int32)
    tables, kept = torch.zeros(3, 9, dtype=torch.int32), torch.zeros(3, 200, dtype=torch.int32)
    for interleaved in (False, True):
        rotation.rotate(q, row.long(), torch.zeros(9, Dk // 2), torch.zeros(9, Dk // 2), 0, interleaved)
    for format in formats:
        keys = Pool(1, G, Dk, format, plain=Dk - Dv)
        values = None if absorbed else Pool(1, G, Dv, format)
        for indices in (None, kept):
            paged.attend(q, keys, values, tables, row, last, 1.0, indices, Dv)


def compile_all(name: str, chosen: list[str]) -> list[dict[str, Any]]:
    """One record for each kernel and set of constants that the operators would launch on GPU `name`.

    `chosen`: the entries of `WIDTHS` to compile for.
    """
    target, records, done = target_of(name), [], set()
    where = ""

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, args, strict=False)) | {x: options.pop(x) for x in names if x in options}
        source = source_of(kernel, arguments)
        if (key := (source.hash(), str(options))) in done:
            return
        done.add(key)
        compiled = triton.compile(source, target=target, options=options)
        flags = "ROWS", "KEYS", "QUERIES", "BLOCK", "SPARSE", "PACK", "ATOMIC", "MERGED", "LISTED", "FP8"
        sizes = {x: arguments[x] for x in flags if x in arguments}
        record = {"target": name, "kernel": kernel.__name__, "widths": where, **sizes, **options}
        records.append(record | report(target, compiled))

    JITFunction.run = run
    limits = tiles.Limits(SHARED_MEMORY[name], target.warp_size, target.arch == tiles.HOPPER)
    operators.limits = loss_operator.limits = paged.limits = lambda device: limits
    paged.processors = lambda device: 100
    for label in chosen:
        for dtype in TYPES if label in ("grouped", "narrow") else [torch.bfloat16]:
            if dtype.is_floating_point:
                where = f"{label}, {str(dtype)[6:]}"
                everything(WIDTHS[label], dtype, label.startswith("absorbed"), label.endswith("unaligned"))
                pages(WIDTHS[label], dtype, label.startswith("absorbed"))
    return records


if __name__ == "__main__":
    print(json.dumps(compile_all(sys.argv[1], sys.argv[2:] or list(WIDTHS))))
