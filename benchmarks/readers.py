"""Do other programs read what is trained here, and compute the same? `python benchmarks/readers.py`.

A corpus is made up, the presets below are trained on it for some steps, and every reader at hand gets the checkpoint
and held-out texts: transformers the folder as it is, llama.cpp a GGUF file that
`inazuma convert` makes of it, vLLM's CPU build the folder, where `--vllm-python` names a Python that has it:

    python benchmarks/readers.py --vllm-python ../vllm/bin/python

vLLM has no sparse attention on a CPU, so it gets air-nano only. Compared are, at every position, the likeliest next
token and the log-probability of every token, all in float32. The record goes to `benchmarks/results/readers.json`.

Positions fall into three groups. "every key": nothing is selected yet, because the model is dense or no more than k
keys are visible. "at a tie": they hang on a tie of index scores (see `benchmarks/parity.py`), which programs break
differently. "selection": the others. llama.cpp rounds its index keys to float16, so it may select otherwise there too.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity import logits_and_ties
from torch import Tensor

import inazuma
from inazuma.data.build import build
from inazuma.data.shards import Dataset
from inazuma.errors import UserError
from inazuma.files import write_json
from inazuma.model import Transformer
from inazuma.model.convert import convert
from inazuma.model.presets import preset
from inazuma.model.presets import readers as expected_readers
from inazuma.model.text import tokenizer_of
from inazuma.runs import surroundings
from inazuma.train.recipe import TrainConfig, recipe_for
from inazuma.train.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "readers.json"
PRESETS = ("air-nano", "dsa-nano")
VOCABULARY = 2048
DOCUMENTS = 400
CONTEXT = 512
BATCH_TOKENS = 4 * CONTEXT
STEPS = {"dense": 20, "warmup": 6, "sparse": 14}
LENGTH = 400
"""Tokens of a text that the readers get: more than the 256 that the sparse presets select."""

LIMITS = {"transformers": 1e-4, "llama.cpp": 1e-3, "vLLM": 1e-3}
"""Largest difference of a log-probability where every key is attended to."""
SPARSE_LLAMA_CPP = 0.02
"""The same for llama.cpp with sparse attention, which it has as flash attention only: values pass through float16."""

VLLM = """
import json, sys
import numpy as np
import vllm
from vllm import LLM, SamplingParams

order = json.load(sys.stdin)
model = LLM(order["folder"], dtype="float32", enforce_eager=True, max_model_len=1024, max_logprobs=-1,
            gpu_memory_utilization=0.3, enable_prefix_caching=False)
options = SamplingParams(temperature=0.0, max_tokens=1, logprobs=-1, prompt_logprobs=-1, detokenize=False)
answers = model.generate([{"prompt_token_ids": ids} for ids in order["texts"]], options)
table = np.full((len(answers), len(order["texts"][0]), order["vocabulary"]), np.nan, dtype=np.float32)
for text, answer in enumerate(answers):
    # The first token of a prompt is predicted by nothing; what follows the last is the generated token.
    for position, found in enumerate([*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]]):
        for token, value in found.items():
            table[text, position, token] = value.logprob
np.save(order["out"], table)
tokenizer = model.get_tokenizer()
tokens = [tokenizer.encode(words, add_special_tokens=False) for words in order["words"]]
print(json.dumps({"version": vllm.__version__, "tokens": tokens}))
"""


class Unread(Exception):
    """A reader that is not there, or that cannot read this checkpoint; says why."""


@dataclasses.dataclass(frozen=True)
class Texts:
    ids: Tensor
    """int64 `[N, T]`: the held-out texts, each with the token that begins a document."""
    words: list[str]
    """The same without that token, as text."""


@dataclasses.dataclass(frozen=True)
class Answer:
    version: str
    logprobs: Tensor
    """float32 `[N, T, V]`: of every token at every position."""
    tokens: list[list[int]]
    """What the reader's own tokenizer makes of the texts' words."""


# ------------------------------------------------------------------------------------------------ corpus and training


def write_corpus(folder: Path) -> Path:
    """A data folder of generated documents: made-up words, each of which is mostly followed by one of four others."""
    draw = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or", "el")]
    words = sorted({"".join(draw.choices(syllables, k=draw.randint(2, 3))) for _ in range(1800)})
    after = {word: draw.sample(words, 4) for word in words}
    (folder / "text").mkdir()
    for number in range(DOCUMENTS):
        word, text = draw.choice(words), []
        for _ in range(draw.randint(200, 700)):
            text.append(word)
            likely = draw.random() < 0.85
            word = draw.choices(after[word], (8, 4, 2, 1))[0] if likely else draw.choice(words)
        (folder / "text" / f"{number:03}.txt").write_text(" ".join(text) + ".\n", encoding="utf-8")
    build([folder / "text"], folder / "data", vocab_size=VOCABULARY, validation_fraction=0.1)
    return folder / "data"


def short_recipe(name: str, dataset: Dataset) -> TrainConfig:
    """The preset's recipe, shortened to `STEPS` of a few rows; its shape and its learning rates stay."""
    recipe = recipe_for(preset(name), dataset)
    stages = tuple(dataclasses.replace(stage, tokens=STEPS[stage.stage] * BATCH_TOKENS) for stage in recipe.stages)
    if len(stages) == 1:  # a dense model trains as long
        stages = (dataclasses.replace(stages[0], tokens=sum(STEPS.values()) * BATCH_TOKENS),)
    return dataclasses.replace(
        recipe, stages=stages, context=CONTEXT, batch_tokens=BATCH_TOKENS, rows_at_once=4, validation_tokens=8192
    )


def train(name: str, dataset: Dataset, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint's folder, and what the training was."""
    recipe = short_recipe(name, dataset)
    trainer = Trainer.start(recipe, folder / name, command=sys.argv)
    lines: list[dict[str, Any]] = []
    trainer.train(lines.append)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    return folder / name / "model", {"steps": trainer.total_steps, "first_loss": losses[0], "last_loss": losses[-1]}


def held_out(dataset: Dataset, model: Transformer, number: int) -> Texts:
    """The first `LENGTH` tokens of the first validation documents that are as long."""
    split, tokenizer = dataset.validation, tokenizer_of(model)
    starts = split.document_start[:-1][np.diff(split.document_start) >= LENGTH][:number]
    ids = np.stack([split.read(start, start + LENGTH) for start in starts.tolist()])
    return Texts(torch.from_numpy(ids), [tokenizer.decode(row[1:].tolist()) for row in ids])


# -------------------------------------------------------------------------------------------------------- the readers


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Unread("not installed") from None


@torch.no_grad()
def transformers(folder: Path, texts: Texts) -> Answer:
    installed = version("transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if any(info.values()):
        raise Unread(f"does not read the checkpoint as it is: {info}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logprobs = torch.cat([model.eval()(ids[None]).logits.log_softmax(-1) for ids in texts.ids])
    return Answer(installed, logprobs, [tokenizer.encode(words, add_special_tokens=False) for words in texts.words])


def llama_cpp(folder: Path, texts: Texts) -> Answer:
    """Its server in this process, on one thread, asked for one token after every beginning of every text."""
    installed = version("xllamacpp")
    import xllamacpp

    file = folder.with_name("model.gguf")
    try:
        convert(folder, file, to="gguf", force=True)
    except UserError as refusal:
        raise Unread(f"has no such model: {refusal}") from None
    sparse = inazuma.load(folder).config.index_topk is not None
    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx, options.n_parallel = 1024, 1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    # Sparse attention is there as flash attention only; without that the rest is more exact.
    kinds = xllamacpp.llama_flash_attn_type
    options.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if sparse else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.warmup, options.verbosity, options.port = False, 0, 0
    server = xllamacpp.Server(options)

    def tokenize(words: str) -> list[int]:
        body = json.dumps({"content": words, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    # The server holds back a byte that is no character yet, so one that is a character is always chosen. The
    # probabilities are those before this bias.
    letter = tokenize("a")[0]
    request = {"n_predict": 1, "temperature": 0.0, "n_probs": VOCABULARY, "logit_bias": [[letter, 1000.0]]}
    logprobs = torch.full((*texts.ids.shape, VOCABULARY), torch.nan)
    for text, ids in enumerate(texts.ids.tolist()):
        for position in range(len(ids)):
            answer = server.handle_completions({"prompt": ids[: position + 1], "cache_prompt": True} | request)
            if "choices" not in answer:
                raise Unread(f"answers: {answer}")
            found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            places = [token["id"] for token in found]
            logprobs[text, position, places] = torch.tensor([token["logprob"] for token in found])
    return Answer(installed, logprobs, [tokenize(words) for words in texts.words])


def vllm(folder: Path, texts: Texts, python: Path | None) -> Answer:
    """Its offline engine in a process of its own: its dependencies contradict ours."""
    if python is None:
        raise Unread("not installed (no --vllm-python)")
    config = inazuma.load(folder).config
    if config.index_topk is not None:
        raise Unread("not asked: vLLM has no sparse attention on a CPU")
    if "vLLM" not in expected_readers(config):
        raise Unread("not asked: this shape is not one that vLLM takes")
    out = folder.with_name("vllm.npy")
    order = {
        "folder": str(folder), "texts": texts.ids.tolist(), "words": texts.words, "vocabulary": VOCABULARY,
        "out": str(out),
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [python, "-c", VLLM], input=json.dumps(order), env=environment, capture_output=True, text=True, cwd=out.parent
    )
    if done.returncode:
        raise Unread(f"fails: {done.stderr.strip().splitlines()[-1]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Answer(said["version"], torch.from_numpy(np.load(out)), said["tokens"])


# ------------------------------------------------------------------------------------------------------- the comparison


def measure(answer: Answer, expected: Tensor, groups: dict[str, Tensor], texts: Texts) -> dict[str, Any]:
    """How far an answer is from ours, `expected` `[N, T, V]`, in each group of positions, bool `[N, T]`."""
    distance = (answer.logprobs - expected).abs().amax(-1)
    if distance.isnan().any():
        raise Unread("leaves out the probability of some tokens")
    same = answer.logprobs.argmax(-1) == expected.argmax(-1)
    return {
        "version": answer.version,
        "same_tokens": answer.tokens == [ids[1:] for ids in texts.ids.tolist()],
        "same_likeliest": float(same.double().mean()),
        "positions": {
            name: {
                "number": int(where.sum()),
                "same_likeliest": float(same[where].double().mean()),
                "largest_difference": float(distance[where].max()),
                "median_difference": float(distance[where].median()),
            }
            for name, where in groups.items()
            if where.any()
        },
    }


def verdict(reader: str, sparse: bool, measured: dict[str, Any]) -> bool:
    """Whether the reader computes what we do: within its limit where nothing hangs on a selection's last place."""
    limit = SPARSE_LLAMA_CPP if sparse and reader == "llama.cpp" else LIMITS[reader]
    groups = ("every key", "selection") if reader == "transformers" else ("every key",)
    far = max(measured["positions"][name]["largest_difference"] for name in groups if name in measured["positions"])
    return measured["same_tokens"] and far <= limit


def compare(folder: Path, texts: Texts, ask: dict[str, Callable[[Path, Texts], Answer]]) -> dict[str, Any]:
    """What each reader makes of the checkpoint in `folder`."""
    ours = inazuma.load(folder)
    k = ours.config.index_topk
    found = [logits_and_ties(ours, ids[None]) for ids in texts.ids]
    expected = torch.stack([logits for logits, _ in found]).log_softmax(-1)
    ties = torch.stack([tie for _, tie in found])
    selects = (torch.arange(texts.ids.shape[1]) >= (texts.ids.shape[1] if k is None else k)).expand_as(ties)
    groups = {"every key": ~selects, "selection": selects & ~ties, "at a tie": ties}
    result = {}
    for reader, answers in ask.items():
        try:
            measured = measure(answers(folder, texts), expected, groups, texts)
            result[reader] = {"reads": verdict(reader, k is not None, measured)} | measured
        except Unread as why:
            result[reader] = {"reads": None, "why": str(why)}
        print(f"{folder.parent.name}, {reader}: {json.dumps(result[reader])}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description="Holds checkpoints trained here against the programs that read them.")
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="a Python that has vLLM's CPU build")
    parser.add_argument("--texts", type=int, default=3, help=f"how many, each of {LENGTH} tokens (default: 3)")
    arguments = parser.parse_args()
    # Not resolved: a virtual environment's Python is a link to another, and finds its packages by where the link is.
    python = arguments.vllm_python and arguments.vllm_python.absolute()
    ask = {"transformers": transformers, "llama.cpp": llama_cpp, "vLLM": lambda *order: vllm(*order, python)}
    models = {}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Dataset.open(write_corpus(Path(scratch)))
        for name in PRESETS:
            folder, training = train(name, dataset, Path(scratch))
            print(f"{name}: {json.dumps(training)}", flush=True)
            model = inazuma.load(folder)
            texts = held_out(dataset, model, arguments.texts)
            facts = {"model_type": json.loads((folder / "config.json").read_text())["model_type"]}
            facts |= {"index_topk": model.config.index_topk, "training": training, "texts": list(texts.ids.shape)}
            models[name] = facts | {"readers": compare(folder, texts, ask)}
    record = {
        "limits": LIMITS | {"llama.cpp, sparse": SPARSE_LLAMA_CPP},
        "models": models,
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, record)
    return int(any(answer["reads"] is False for model in models.values() for answer in model["readers"].values()))


if __name__ == "__main__":
    sys.exit(main())
