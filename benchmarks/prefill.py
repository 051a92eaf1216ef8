"""Prefill of a DeepSeek-V3.2 checkpoint by inazuma and by transformers: `python benchmarks/prefill.py`.

Both read the same folder, a small model of random weights that inazuma writes, and read the same prompt into their
cache, each in a process of its own. The record (seconds, memory, and how far the last logits are apart) goes to
`benchmarks/results/prefill.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from inazuma import load
from inazuma.files import write_json
from inazuma.model import ModelConfig, Transformer
from inazuma.model.cache import Cache
from inazuma.model.generate import prefill
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "prefill.json"
VOCABULARY = 1024


@torch.inference_mode()
def measure(program: str, folder: str, length: int, repeats: int, threads: int) -> dict:
    """Seconds of each pass, peak memory of this process and what the passes added to it, and the last logits."""
    torch.set_num_threads(threads)
    if program == "inazuma":
        model = load(folder)

        def run(ids):  # as `generate` reads a prompt
            lengths = torch.tensor([ids.shape[1]])
            return prefill(model, ids, lengths, Cache(1, ids.shape[1]))[0]
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

        def run(ids):
            return model(ids, logits_to_keep=1).logits[0, -1]

    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    run(ids[:, :64])
    before = surroundings.resident("VmRSS")
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        logits = run(ids).tolist()
        seconds.append(time.perf_counter() - started)
    peak = surroundings.resident("VmHWM")
    return {"seconds": seconds, "peak": peak, "added": peak - before, "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3, help="of ours; transformers runs once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.length, arguments.repeats, arguments.threads)))
        return
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=arguments.length,
    )
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        Transformer(config).init_weights(0).save(folder)
        # Ours before and after theirs, which takes a minute or more: a machine that is shared may be busier in one.
        for place, repeats in (("before", arguments.repeats), ("transformers", 1), ("after", arguments.repeats)):
            program = "transformers" if place == "transformers" else "inazuma"
            command = [sys.executable, __file__, "--measure", program, str(folder)]
            options = {"length": arguments.length, "repeats": repeats, "threads": arguments.threads}
            command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results[place] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours = results["transformers"], results.pop("before")
    ours["seconds"] += results.pop("after")["seconds"]
    last = [torch.tensor(one.pop("logits")) for one in (ours, theirs)]
    record = {
        "length": arguments.length,
        "threads": arguments.threads,
        "inazuma": ours,
        "transformers": theirs,
        "times_faster": statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"]),
        "share_of_peak": ours["peak"] / theirs["peak"],
        "share_of_added": ours["added"] / theirs["added"],
        "largest_difference_of_logits": float((last[0] - last[1]).abs().max()),
        "largest_logit": float(last[1].abs().max()),
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)
    print(json.dumps({name: value for name, value in record.items() if name != "packages"}, indent=2))


if __name__ == "__main__":
    main()
