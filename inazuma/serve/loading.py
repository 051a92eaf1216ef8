"""From a model folder to an engine: which weights fit, how long a text may be, and what it costs in quality."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import inazuma
from inazuma.errors import UserError
from inazuma.model.checkpoint import read_config
from inazuma.model.config import ModelConfig
from inazuma.model.plan import plan
from inazuma.model.streaming import load_streaming
from inazuma.model.text import tokenizer_of
from inazuma.model.transformer import Transformer
from inazuma.ops.pool import PAGE
from inazuma.serve.engine import Engine
from inazuma.serve.runner import Format, Piece, Runner, Weights, page_bytes

SHARE = 0.7
"""Of the memory that is available, what weights may take before fewer bits are chosen."""

CACHE_SHARE, CACHE_MOST = 0.25, 4_000_000_000
"""Of the memory that is available and in bytes, what the caches take at most by default. Untouched pages take none."""

SAMPLE = """\
A lightning indexer scores every earlier token for each new one, and attention reads the best of them alone. What it
costs to read a long text therefore grows slowly: of sixty-four thousand tokens two thousand are looked at. Whether that
is enough depends on the task, which is why it should be measured and not believed.
def mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)
稲妻は、長い文章のなかから大切な語だけを選んで読みます。計算は軽くなりますが、精度は必ず測って確かめてください。
The train leaves at 8:15, arrives at 11:42 and costs 5,310 yen; a seat by the window is 530 yen more.
"""
"""A text to measure on: prose, code, Japanese, numbers. Too short to judge a model by, long enough to see whether fewer
bits break it."""


@dataclass(frozen=True)
class Loaded:
    engine: Engine
    config: ModelConfig
    folder: Path
    weights: Weights
    notes: tuple[str, ...]
    """Lines about what was chosen, for the person who started it."""


def load_engine(
    folder: Path | str,
    *,
    quantize: Literal["auto", "none", "int8", "int4"] = "auto",
    memory: int | None = None,
    context: int | None = None,
    cache_memory: int | None = None,
    cache_format: Literal["auto", "bf16", "fp8"] = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Loaded:
    """Loads a Hugging Face folder and starts an engine.

    Args:
        quantize: bits of the weights; "auto" takes the most that fit into the memory that is available.
        memory: bytes that the whole process may take; a mixture's experts stay on disk.
        context: tokens of a prompt and its answer, at most; default: the model's positions, as far as they fit.
        cache_memory: bytes for the caches of all texts.
        cache_format: "auto" is bf16, as the weights are; float32 weights have a float32 cache.
        progress: told how many layers are done, and of how many.

    Raises:
        UserError: as `inazuma.load`, or what was asked for does not fit.
    """
    folder = Path(folder)
    if folder.suffix == ".gguf":
        raise UserError(f"{folder}: make a model folder of it first: inazuma convert {folder} FOLDER")
    config, _ = read_config(folder)
    device = "cuda" if torch.cuda.is_available() and memory is None else "cpu"
    room = available_memory(device)
    weights = _choose(config, room) if quantize == "auto" else quantize
    if device != "cpu" and weights != "none":
        raise UserError(f"quantize: {weights} works on the CPU only")
    if memory is not None:
        if quantize not in ("auto", "none"):
            raise UserError("memory: experts on disk are read as they are; leave out quantize")
        weights, room = "none", memory
        model = load_streaming(folder, memory)
    else:
        model = inazuma.load(folder, device=device)
    exact = model.lm_head.weight.dtype not in (torch.bfloat16, torch.float16)
    format: Format = {"auto": "float32" if exact else "bfloat16", "bf16": "bfloat16", "fp8": "fp8"}[cache_format]
    per_page = page_bytes(config, format)
    if cache_memory is None:
        cache_memory = int(min(CACHE_SHARE * room, CACHE_MOST)) if memory is None else memory // 20
    longest = config.max_position_embeddings
    pages = min(cache_memory // per_page, 64 * -(-longest // PAGE))
    limit = min(longest, pages * PAGE)
    if context is not None and context > longest:
        raise UserError(f"context: the model has {longest} positions, got {context}")
    if context is not None and context > limit:
        raise UserError(
            f"context: {context} tokens take {-(-context // PAGE) * per_page / 1e6:.0f} MB of cache, and it has "
            f"{cache_memory / 1e6:.0f} MB; give it more"
        )
    if not pages:
        raise UserError(f"cache_memory: {cache_memory} bytes hold no page of {per_page} bytes")
    context = limit if context is None else context

    before = None if weights == "none" else _bits_per_byte(model, None)
    layers = len(model.model.layers)
    runner = Runner(
        model,
        pages=pages,
        context=context,
        weights=weights,
        format=format,
        progress=lambda done: progress(done, layers),
    )
    bits = {"none": "bf16" if not exact else "float32"}.get(weights, weights)
    notes = [f"weights {bits}, {runner.weight_bytes / 1e6:,.0f} MB"]
    if before is not None:
        after = _bits_per_byte(model, runner)
        notes[0] += f": {after:.4f} bits per byte on a sample, {before:.4f} before ({after / before - 1:+.2%})"
    notes.append(
        f"context {context:,} tokens; cache {format}, {pages * per_page / 1e6:,.0f} MB at most, for {pages * PAGE:,}"
    )
    return Loaded(Engine(runner), config, folder, weights, tuple(notes))


def _choose(config: ModelConfig, room: int) -> Weights:
    """The most bits that leave memory for caches and the program."""
    needs = plan(config)
    for weights, kind in (("none", "bfloat16"), ("int8", "int8"), ("int4", "int4")):
        if needs.weight_bytes(kind) <= SHARE * room:
            return weights
    raise UserError(
        f"the weights take {needs.weight_bytes('int4') / 1e9:.1f} GB even in int4, and {room / 1e9:.1f} GB of memory "
        "are available; leave a mixture's experts on disk with a memory limit"
    )


def _bits_per_byte(model: Transformer, runner: Runner | None) -> float | None:
    """What it takes to write `SAMPLE` down with the model as it is, or as it was packed."""
    if model.tokenizer_folder is None:
        return None
    encoding = tokenizer_of(model).encode(SAMPLE, add_special_tokens=False)
    begin = [] if model.config.bos_token_id is None else [model.config.bos_token_id]
    count = min(512, model.config.max_position_embeddings if runner is None else runner.context) - len(begin)
    ids = [*begin, *encoding.ids[:count]]
    if len(ids) < 2:
        return None
    logits: Tensor
    if runner is None:
        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.lm_head.weight.device))[0]
    else:
        logits = runner.step([Piece(ids, 0, list(range(-(-len(ids) // PAGE))), logits=len(ids))]).logits
    nats = F.cross_entropy(logits[:-1].float().cpu(), torch.tensor(ids[1:]), reduction="sum")
    end = encoding.offsets[len(ids) - len(begin) - 1][1]
    return float(nats) / math.log(2) / len(SAMPLE[:end].encode())


def available_memory(device: str = "cpu") -> int:
    """Bytes that can be taken now: of the GPU, or of the machine and of the control group that we are in."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    return max(min(found), 0)
