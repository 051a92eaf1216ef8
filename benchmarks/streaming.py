"""A mixture of experts three times larger than its memory limit: `python benchmarks/streaming.py`.

Writes a checkpoint of random weights with the shape of GLM-4.5-Air, an eighth as wide (46 layers, 128 experts of which
8 are chosen, one shared expert, first layer dense; 3.3 GB), shard by shard; then writes text with it, loaded whole and
under several limits, each in a process of its own. The record goes to `benchmarks/results/streaming.json`: whether the
tokens are the same, tokens per second, peak resident memory, what the plan foresaw, hit rate, and bytes read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from inazuma import load
from inazuma.files import write_json
from inazuma.model import Cache, ModelConfig, families
from inazuma.model.checkpoint import to_public
from inazuma.model.generate import prefill
from inazuma.model.plan import plan
from inazuma.model.streaming import load_streaming
from inazuma.model.transformer import skeleton
from inazuma.runs import surroundings
from inazuma.runs.surroundings import resident

RESULT = Path(__file__).parent / "results" / "streaming.json"
AIR = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "num_attention_heads": 96, "num_key_value_heads": 8,
}  # fmt: skip
LIMITS = (900, 1000, 2000, 4000)
"""Megabytes (10^6 bytes)."""


def shape(divisor: int) -> ModelConfig:
    """GLM-4.5-Air with all that is wide divided by `divisor`."""
    return ModelConfig(
        **{name: width // divisor for name, width in AIR.items()},
        model_type="glm4_moe",
        attention="gqa",
        head_dim=128,
        num_hidden_layers=46,
        partial_rotary_factor=0.5,
        qkv_bias=True,
        rope_theta=1e6,
        rope_interleave=False,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
        index_topk=None,
        n_routed_experts=128,
        num_experts_per_tok=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        eos_token_id=None,
        bos_token_id=None,
    )


def write(config: ModelConfig, folder: Path) -> int:
    """A checkpoint of random bfloat16 weights, a shard a layer, never more in memory; returns its bytes."""
    folder.mkdir(parents=True)
    model = skeleton(config)
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    places, total = {}, 0
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(name.split(".")[2] if ".layers." in name else "rest", []).append(name)
    for number, names in enumerate(groups.values()):
        weights = {name: draw(name, shapes[name], generator) for name in names}
        public = {name: x.contiguous() for name, x in to_public(weights).items()}
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        save_file(public, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(public, file)
        total += sum(x.nbytes for x in public.values())
    write_json(folder / "config.json", {**families.writer(config).write(config), "dtype": "bfloat16"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    return total


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Random, so large that logits and routing differ from token to token."""
    if name.endswith("e_score_correction_bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    scale = 1.0 if name == "model.embed_tokens.weight" else shape[-1] ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=scale, generator=generator)


@torch.inference_mode()
def measure(folder: str, memory: int, prompt: int, new: int, guess: bool) -> dict:
    """Writes `new` tokens after a prompt, under a limit of `memory` bytes or (0) with everything in memory."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    started = time.perf_counter()
    model = load_streaming(folder, memory) if memory else load(folder)
    record = {"limit": memory or None, "guess": guess, "seconds_to_load": time.perf_counter() - started}
    if memory and not guess:
        for layer in model.model.layers[model.config.first_k_dense_replace :]:
            layer.mlp.experts.following = None
    ids = torch.randint(model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
    cache = Cache(1, prompt + new)
    started = time.perf_counter()
    token = prefill(model, ids, torch.tensor([prompt]), cache).argmax(-1)
    record["prompt_tokens_per_second"] = prompt / (time.perf_counter() - started)
    before = vars(model.expert_cache.counts).copy() if memory else {}
    tokens = [int(token)]
    started = time.perf_counter()
    while len(tokens) < new:
        token = model(token[:, None], cache=cache)[:, -1].argmax(-1)
        tokens.append(int(token))
    record["tokens_per_second"] = (new - 1) / (time.perf_counter() - started)
    record |= {"peak": resident("VmHWM"), "tokens": tokens}
    if memory:
        counts = {name: value - before[name] for name, value in vars(model.expert_cache.counts).items()}
        record |= {"slots": model.expert_cache.slots, **counts, "hit_rate": counts["found"] / counts["used"]}
        record["bytes_read_per_token"] = counts["bytes_read"] / (new - 1)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--divisor", type=int, default=8, help="how much narrower than GLM-4.5-Air")
    parser.add_argument("--limits", type=int, nargs="+", default=LIMITS, metavar="MB")
    parser.add_argument("--prompt", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--new", type=int, default=12, metavar="TOKENS")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "BYTES", "GUESS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, memory, guess = arguments.measure
        print(json.dumps(measure(folder, int(memory), arguments.prompt, arguments.new, guess == "True")))
        return
    config = shape(arguments.divisor)
    needs = plan(config)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "model"
        if not folder.exists():
            write(config, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        limits = [megabytes * 10**6 for megabytes in arguments.limits]
        # The middle limit once more, without reading ahead for the next layer.
        runs = [(0, True), *((limit, True) for limit in limits), (limits[len(limits) // 2], False)]
        results = []
        for memory, guess in runs:
            command = [sys.executable, __file__, "--measure", str(folder), str(memory), str(guess)]
            command += ["--prompt", str(arguments.prompt), "--new", str(arguments.new)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print({name: value for name, value in results[-1].items() if name != "tokens"}, flush=True)
    whole, *streamed = results
    expected = whole.pop("tokens")
    for result in streamed:
        result["same_tokens_as_whole"] = result.pop("tokens") == expected
        result["within_limit"] = result["peak"] <= result["limit"]
        share = result["slots"] / needs.experts
        result["planned_limit"] = needs.limit(min(share, 1.0), tokens=arguments.prompt + arguments.new)
    record = {
        "checkpoint_bytes": size,
        "distinct_tokens": len(set(expected)),
        "prompt": arguments.prompt,
        "new": arguments.new,
        "threads": len(os.sched_getaffinity(0)),
        "plan": {
            "parameters": needs.parameters,
            "weight_bytes": needs.weight_bytes(),
            "resident_bytes": needs.resident_bytes(),
            "expert_bytes": needs.expert_bytes(),
            "experts": needs.experts,
            "smallest_limit": needs.smallest_limit(tokens=arguments.prompt + arguments.new),
        },
        "whole": whole,
        "streamed": streamed,
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
