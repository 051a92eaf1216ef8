"""Serving on a GPU beside transformers: `python benchmarks/serve_gpu.py --tokenizer DIR` writes
`benchmarks/results/serve_gpu.json`.

A model of random weights in SmolLM2-135M's shape writes for 1, 8 and 32 texts at once and reads a long prompt, in this
project's engine and in transformers' `generate` as it is called by default (one batch of equal prompts); no speed
depends on what the weights are. Then what a step of the engine takes after long contexts, of a sparse mixture of
experts (the preset dsa-mini with room for 66,560 positions).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import inazuma
from inazuma.errors import UserError
from inazuma.files import write_json
from inazuma.model import ModelConfig, Transformer
from inazuma.model.presets import preset
from inazuma.runs import surroundings
from inazuma.serve.engine import Engine
from inazuma.serve.request import Done, Request, Sampling
from inazuma.serve.runner import Piece, Runner

RESULT = Path(__file__).parent / "results" / "serve_gpu.json"
TEXTS, PROMPT, NEW, LONG = (1, 8, 32), 100, 64, 4096
LENGTHS = (256, 4096, 16384, 65536)
TURNS = 2
SMOLLM2 = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    intermediate_size=1536,
    num_attention_heads=9,
    attention="gqa",
    num_key_value_heads=3,
    head_dim=64,
    rope_interleave=False,
    index_topk=None,
    rope_theta=100000.0,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    eos_token_id=2,
)


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, SMOLLM2.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def ours(folder: Path) -> dict[str, list[float]]:
    """Seconds of each turn, after one that compiles and captures."""
    engine = Engine(Runner(inazuma.load(folder, device="cuda"), pages=600, context=8192, format="bfloat16"))
    greedy = Sampling(temperature=0, logit_bias={2: -100.0})

    async def answer(ids: list[int], new: int) -> int:
        async for event in engine.submit(Request(ids, new, greedy)):
            if isinstance(event, Done):
                return event.new_tokens
        raise AssertionError

    async def write(texts: int, length: int, new: int, seed: int) -> None:
        answers = (answer(prompt(length, 1000 * seed + i), new) for i in range(texts))
        assert await asyncio.gather(*answers) == [new] * texts

    found = {}
    for name, texts, length, new in tasks():
        found[name] = []
        for turn in range(-1, TURNS):
            started = time.perf_counter()
            asyncio.run(write(texts, length, new, 10 * texts + turn + 1))
            if turn >= 0:
                found[name].append(time.perf_counter() - started)
    engine.close(10)
    return found


def theirs(folder: Path) -> dict[str, list[float]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()

    def write(texts: int, length: int, new: int, seed: int) -> None:
        ids = torch.tensor([prompt(length, 1000 * seed + i) for i in range(texts)], device="cuda")
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        torch.cuda.synchronize()

    found = {}
    for name, texts, length, new in tasks():
        write(texts, length, 3, 0)
        found[name] = []
        for turn in range(TURNS):
            started = time.perf_counter()
            write(texts, length, new, 10 * texts + turn + 1)
            found[name].append(time.perf_counter() - started)
    return found


def tasks() -> list[tuple[str, int, int, int]]:
    """Name, texts, tokens of a prompt, tokens to write."""
    return [*((f"{texts} texts", texts, PROMPT, NEW) for texts in TEXTS), ("long prompt", 1, LONG, 1)]


def steps(folder: Path) -> dict[str, float]:
    """Milliseconds of a step that reads one token after so many; the caches hold random numbers."""
    runner = Runner(inazuma.load(folder, device="cuda"), pages=1040, context=66560, format="bfloat16")
    for layer in runner._layers:
        for pool in layer.pools:
            pool.data.normal_()
    pages, found = torch.randperm(1040).tolist(), {}
    for length in LENGTHS:
        times = []
        for step in range(40):
            started = time.perf_counter()
            runner.step([Piece([100 + step], length + step, pages)]).logits.cpu()
            times.append(time.perf_counter() - started)
        found[str(length)] = 1e3 * statistics.median(times[8:])
    return found


def save(config: ModelConfig, folder: Path, tokenizer: Path) -> Path:
    Transformer(config).init_weights(0).to(torch.bfloat16).save(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    return folder


def run(tokenizer: Path) -> dict:
    record: dict = {
        "what": "seconds to write for several texts at once and to read a long prompt; milliseconds of a step",
        "machine": surroundings.machine(),
        "code": surroundings.code(),
        "sizes": {"prompt": PROMPT, "new": NEW, "long_prompt": LONG, "turns": TURNS},
    }
    long = dataclasses.replace(
        preset("dsa-mini"), vocab_size=49152, max_position_embeddings=66560, eos_token_id=2, bos_token_id=1
    )
    with tempfile.TemporaryDirectory() as work:
        dense, sparse = (save(c, Path(work) / n, tokenizer) for n, c in (("dense", SMOLLM2), ("sparse", long)))
        for name, measure in (("inazuma", ours), ("transformers", theirs)):
            record[name] = measure(dense)
            gc.collect()
            torch.cuda.empty_cache()
            print(name, record[name], flush=True)
        record["times_transformers"] = {
            task: statistics.median(record["transformers"][task]) / statistics.median(record["inazuma"][task])
            for task, *_ in tasks()
        }
        record["step after a context, ms"] = steps(sparse)
        print(record["times_transformers"], record["step after a context, ms"], flush=True)
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with SmolLM2's tokenizer.json")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    try:
        if not torch.cuda.is_available():
            raise UserError("serve_gpu.py: PyTorch finds no GPU here; nothing was measured")
        write_json(arguments.out, run(arguments.tokenizer))
    except UserError as error:
        sys.exit(str(error))
