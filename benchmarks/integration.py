"""transformers' DeepSeek-V3.2 as it is and with inazuma inside: `python benchmarks/integration.py`.

The same transformers model of random weights runs one forward pass over the same tokens, with `attn_implementation`
"sdpa" (transformers' default) and "inazuma", each in a process of its own. The record (seconds, memory, and how far the
last logits are apart) goes to `benchmarks/results/integration.json`.

With the 8 index heads of this model scores tie at exactly zero, and the two break ties otherwise; so the logits of all
tokens are compared as well in a shorter pass of the same model with 32 index heads, where none tie.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from inazuma.files import write_json
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "integration.json"
VOCABULARY = 1024
# The model of benchmarks/prefill.py, in transformers' terms.
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "index_topk": 256, "index_n_heads": 8, "index_head_dim": 32,
    "first_k_dense_replace": 4, "n_routed_experts": 1, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def build(implementation: str, length: int, **changes: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model, and tokens for it."""
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV32Config(**SIZES | changes, max_position_embeddings=length)
    model = DeepseekV32ForCausalLM._from_config(config, attn_implementation=implementation).eval()
    return model, torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def difference_without_ties(length: int = 1024, index_heads: int = 32) -> dict:
    """How far the logits of any token are apart where no scores tie."""
    import inazuma.integrations.transformers as it

    it.enable()
    model, ids = build("sdpa", length, index_n_heads=index_heads)
    theirs = model(ids, use_cache=False).logits
    model.set_attn_implementation("inazuma")
    difference = (model(ids, use_cache=False).logits - theirs).abs().max()
    return {"length": length, "index_n_heads": index_heads, "largest_difference_of_logits": float(difference)}


@torch.inference_mode()
def measure(implementation: str, length: int, repeats: int, threads: int) -> dict:
    """Seconds of each pass, peak memory of this process and what the passes added to it, and the last logits."""
    if implementation == "inazuma":
        import inazuma.integrations.transformers as it

        it.enable()
    torch.set_num_threads(threads)
    model, ids = build(implementation, length)
    model(ids[:, :64], use_cache=False)
    before = surroundings.resident("VmRSS")
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        logits = model(ids, use_cache=False).logits[0, -1].tolist()  # all others are freed
        seconds.append(time.perf_counter() - started)
    peak = surroundings.resident("VmHWM")
    return {"seconds": seconds, "peak": peak, "added": peak - before, "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3, help="with inazuma; transformers alone runs once")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.length, arguments.repeats, arguments.threads)))
        return
    results = {}
    # Ours before and after theirs, which takes a minute or more: a machine that is shared may be busier in one.
    for place, repeats in (("before", arguments.repeats), ("transformers", 1), ("after", arguments.repeats)):
        implementation = "sdpa" if place == "transformers" else "inazuma"
        command = [sys.executable, __file__, "--measure", implementation]
        options = {"length": arguments.length, "repeats": repeats, "threads": arguments.threads}
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[place] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours, after = results["transformers"], results["before"], results["after"]
    ours["seconds"] += after["seconds"]
    ours |= {name: max(ours[name], after[name]) for name in ("peak", "added")}
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
        "without_ties": difference_without_ties(),
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, record)
    print(json.dumps({name: value for name, value in record.items() if name != "packages"}, indent=2))


if __name__ == "__main__":
    main()
