"""`inazuma bench serve`: the same weights in this project's server, llama.cpp's and transformers, in turns on the same
cores, as a run that can be checked.

All are asked through HTTP but transformers, which has no server that reads several texts at once on a CPU: it writes by
`generate`, for one client after another.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inazuma.bench import serve
from inazuma.errors import UserError
from inazuma.files import check_fresh, read_json, sha256, write_json
from inazuma.model.checkpoint import read_config, weight_files
from inazuma.model.convert import convert
from inazuma.runs.lines import encode_line
from inazuma.runs.run import Run
from inazuma.runs.verify import produce

FIGURES = ("decode", "prefill", "clients")
TRANSFORMERS = "transformers bfloat16"
_RECORDS = "records/turns.jsonl"
_FACTS = "records/facts.json"


class Server(NamedTuple):
    name: str
    start: Callable[[], AbstractContextManager[str]]
    """Gives its address."""
    body: dict[str, Any]
    """What keeps its answers from ending early."""


def servers(folder: Path, bfloat16: Path, gguf: Path) -> list[Server]:
    """Those that take part; `bfloat16` is a copy of the model in `folder`."""
    never = {"logit_bias": {str(token): -100 for token in _stop_ids(folder)}}
    ours = [("none", folder), ("bfloat16", bfloat16), ("int8", folder), ("int4", folder)]
    found = [
        Server(
            f"inazuma {weights}",
            partial(serve.inazuma_server, path, "--quantize", "none" if weights == "bfloat16" else weights),
            never,
        )
        for weights, path in ours
    ]
    kind = gguf.stem.split(".")[-1]
    for threads in (1, 2):
        start = partial(serve.llama_server, gguf, threads, serve.CLIENTS, 2048)
        found.append(Server(f"llama.cpp {kind}, {threads} threads", start, {"ignore_eos": True}))
    return found


def _stop_ids(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return sorted(read_config(folder)[0].stop_ids | frozenset(ends))


def run_comparison(
    out: Path,
    *,
    folder: Path,
    gguf: Path,
    turns: int,
    command: Sequence[str],
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures into the run folder `out`; returns the figures of its result.json: for each of `servers`, its name and
    tokens a second, as the median of the turns and their range.

    Raises:
        UserError: `out` exists (without `force`), the model or `gguf` is missing, or a package of the others'.
    """
    check_fresh(out, force=force)
    if turns < 1:
        raise UserError(f"turns: at least 1 is needed, got {turns}")
    for module in ("xllamacpp", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed; pip install {module}")
    read_config(folder)
    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file")
    config = {
        "model": str(folder),
        "gguf": str(gguf),
        "turns": turns,
        "new_tokens": serve.NEW,
        "prompt_words": serve.PROMPT,
        "clients": serve.CLIENTS,
    }
    inputs = {str(path): sha256(path) for path in (folder / "config.json", *weight_files(folder), gguf)}
    run = Run.create(out, command=command, config=config, inputs=inputs, force=force)
    try:
        facts = {
            "load_before": round(os.getloadavg()[0], 2),
            # A processor without instructions for bfloat16 takes several times as long in it.
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "servers": [],
        }
        (out / _RECORDS).parent.mkdir()
        with open(out / _RECORDS, "ab", buffering=0) as records:
            for record in measure(folder, gguf, turns):
                records.write(encode_line(record))
                say("{server}: {figure} {tokens} tokens in {seconds:.2f} s".format(**record))
                if record["server"] not in facts["servers"]:
                    facts["servers"].append(record["server"])
        write_json(out / _FACTS, facts)
        result = produce(out, evidence(facts["servers"]))
        run.finish("finished")
        return result
    except BaseException as error:
        run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def measure(folder: Path, gguf: Path, turns: int) -> Iterator[dict[str, Any]]:
    """What every turn of every server took, as it comes: server, turn, figure, tokens, seconds."""
    with tempfile.TemporaryDirectory(prefix="inazuma-bench-") as copies:
        bfloat16 = Path(copies) / "bfloat16"
        convert(folder, bfloat16, to="hf", dtype=torch.bfloat16)
        contestants = servers(folder, bfloat16, gguf)
        for turn in range(turns):
            for name, start, body in contestants:
                with start() as url, serve.client_of(url) as client:
                    model = client.get("/v1/models").json()["data"][0]["id"]
                    for record in serve.turn_records(url, {"model": model, **body}, turn):
                        yield {"server": name, "turn": turn, **record}
        yield from transformers_records(bfloat16, turns)


def transformers_records(folder: Path, turns: int) -> list[dict[str, Any]]:
    """What the turns of transformers took, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_transformers, str(folder), turns, serve.NEW, serve.PROMPT).result()


def _transformers(folder: str, turns: int, new: int, prompt: int) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def seconds(length: int, count: int, seed: int) -> float:
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.config.vocab_size, (1, length), generator=draw)
        begin = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - begin

    found = []
    with torch.inference_mode():
        for turn in range(-1, turns):  # the first warms up
            first = seconds(25, 1, turn)
            decode = seconds(25, new, turn) - first
            prefill = seconds(prompt, 1, turn)
            for figure, tokens, taken in (
                ("decode", new - 1, decode),
                ("prefill", prompt, prefill),
                ("clients", new - 1, decode),
            ):
                one = {"figure": figure, "tokens": tokens, "seconds": taken}
                found.append({"server": TRANSFORMERS, "turn": turn, **one})
    return [record for record in found if record["turn"] >= 0]


def evidence(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How every figure of result.json follows from the records."""
    how: dict[str, dict[str, Any]] = {
        name: {"formula": "value", "record": _FACTS, "field": name} for name in ("load_before", "instructions")
    }
    for place, name in enumerate(names):
        how[f"servers.{place}.name"] = {"formula": "value", "record": _FACTS, "field": ["servers", place]}
        for figure in FIGURES:
            of = {"record": _RECORDS, "columns": ["tokens", "seconds"], "where": {"server": name, "figure": figure}}
            how[f"servers.{place}.{figure}.median"] = {"formula": "median_rate", **of}
            how[f"servers.{place}.{figure}.range"] = {"formula": "rate_range", **of}
    return how
