"""int8 and int4 weights: their loss in bits per byte beside their speed: `python benchmarks/quantized.py --model DIR`.

Speed: a dense model of random weights, in bfloat16 and quantised. Quality and speed: a trained model, `--model`
(`inazuma demo` makes one), in float32 as it was saved, on the
source of Python modules it was not trained on. Each is measured in a process of its own. The record
goes to `benchmarks/results/quantized.json`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import torch

from inazuma import load
from inazuma.files import write_json
from inazuma.model import Cache, ModelConfig, Transformer
from inazuma.model.generate import prefill
from inazuma.model.quantize import quality, quantize
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "quantized.json"
TEXT = ("argparse", "tarfile", "statistics")
"""Modules of the standard library; the demo trains on packages that are not part of it."""

LARGE = ModelConfig(
    attention="gqa",
    index_topk=None,
    vocab_size=16384,
    hidden_size=768,
    num_hidden_layers=12,
    intermediate_size=2048,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
)


@torch.inference_mode()
def speed(kind: str, length: int = 512, new: int = 24, repeats: int = 3) -> dict:
    """Median tokens per second of the model of random weights."""
    model = Transformer(LARGE).init_weights(0).to(torch.bfloat16).eval()
    parameters = sum(x.numel() for x in model.parameters())
    if kind != "none":
        quantize(model, kind)
    ids = torch.randint(LARGE.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    read, wrote = [], []
    for repeat in range(repeats + 1):
        cache = Cache(1, length + new)
        started = time.perf_counter()
        token = prefill(model, ids, torch.tensor([length]), cache).argmax(-1)
        middle = time.perf_counter()
        for _ in range(new):
            token = model(token[:, None], cache=cache)[:, -1].argmax(-1)
        if repeat:  # the first one warms up
            read.append(length / (middle - started))
            wrote.append(new / (time.perf_counter() - middle))
    medians = {"prefill": statistics.median(read), "decode": statistics.median(wrote)}
    return {"parameters": parameters, **medians, "all_prefill": read, "all_decode": wrote}


def trained(kind: str, folder: str) -> dict:
    """Bits per byte and tokens per second of a trained model."""
    model = load(folder)
    parameters = sum(x.numel() for x in model.parameters())
    if kind != "none":
        quantize(model, kind)
    text = "".join(inspect.getsource(import_module(name)) for name in TEXT)
    return {"parameters": parameters, "bytes": len(text.encode()), **quality(model, text)._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        what, kind = arguments.measure
        print(json.dumps(speed(kind) if what == "random" else trained(kind, arguments.model)))
        return
    record: dict = {"threads": len(os.sched_getaffinity(0)), "text": TEXT, "random": {}, "trained": {}}
    for what in ("random", "trained"):
        for kind in ("none", "int8", "int4"):
            command = [sys.executable, __file__, "--model", arguments.model, "--measure", what, kind]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            record[what][kind] = json.loads(done.stdout.splitlines()[-1])
            print(what, kind, record[what][kind], flush=True)
    record |= {"code": surroundings.code(), "machine": surroundings.machine(), "packages": surroundings.packages()}
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
