"""The demo: a sparse-attention Transformer and its dense twin, from raw text to a report that can be checked."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer

import inazuma
from inazuma.data.batches import Batch, evaluation_windows, training_windows
from inazuma.data.build import build
from inazuma.data.shards import Dataset
from inazuma.demo.baselines import Bigram, bigram_losses, gzip_losses
from inazuma.demo.corpus import package_sources
from inazuma.demo.report import write_report
from inazuma.errors import UserError
from inazuma.files import PARTIAL, atomic_file, check_fresh, write_json
from inazuma.model import ModelConfig, Transformer
from inazuma.model.attention import Observation
from inazuma.model.text import continue_text, tokenizer_of
from inazuma.ops import engine_for, select_tokens
from inazuma.runs.run import Run
from inazuma.runs.verify import produce
from inazuma.train.progress import TrainingDisplay
from inazuma.train.recipe import OptimizerConfig, Stage, TrainConfig
from inazuma.train.trainer import Trainer
from inazuma.train.validate import DocumentLosses, document_losses, selection_qualities

PROMPTS = (
    "def shortest_path(G, source, target):\n",
    "class Matrix:\n    def __init__(self, rows, cols):\n",
    'def gcd(a, b):\n    """Return the greatest common divisor of',
)


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How large the demo is; the default takes some minutes on two cores."""

    vocab_size: int = 4096
    context: int = 1024
    topk: int = 256
    dense_tokens: int = 400_000
    warmup_tokens: int = 16_000
    sparse_tokens: int = 220_000
    batch_tokens: int = 2048
    validation_tokens: int = 100_000
    validation_fraction: float = 0.05
    selection_windows: int = 12
    hidden_size: int = 256
    layers: int = 2
    sample_tokens: int = 120

    @property
    def tokens(self) -> int:
        return self.dense_tokens + self.warmup_tokens + self.sparse_tokens


def run_demo(
    out: Path,
    *,
    data: Sequence[Path] | None = None,
    command: Sequence[str],
    force: bool = False,
    size: DemoSize | None = None,
) -> dict[str, Any]:
    """Runs the whole demo into the run folder `out`; returns the figures of its result.json.

    Raises:
        UserError: `out` exists (without `force`), or `data` cannot be used. RunError: the training failed.
    """
    size = size or DemoSize()
    console = Console(stderr=True)
    began = time.perf_counter()
    corpus: dict[str, Any] = {"names": [path.name for path in data]} if data else {}
    if data is None:
        data, corpus["packages"] = package_sources()
    check_fresh(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A corpus that cannot be used is the person's mistake: nothing is left of it, not even a failed run.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=PARTIAL) as folder:
        prepared = Path(folder) / "data"
        console.print(f"preparing the corpus of {len(data)} files or folders", highlight=False)
        build(data, prepared, vocab_size=size.vocab_size, validation_fraction=size.validation_fraction)
        check_long_enough(Dataset.open(prepared), size)
        run = Run.create(out, command=command, config={"corpus": corpus, **vars(size)}, seeds={"seed": 0}, force=force)
        prepared.rename(out / "data")
    try:
        dataset = Dataset.open(out / "data")
        sparse_recipe, dense_recipe = recipes(size, dataset)
        for name, recipe in (("dense", dense_recipe), ("sparse", sparse_recipe)):
            trainer = Trainer.start(recipe, out / name, command=command)
            with TrainingDisplay(name, trainer.total_steps, console=console) as display:
                trainer.train(display.watch)
        console.print("measuring both on whole documents", highlight=False)
        records = out / "records"
        records.mkdir()
        measure(out, dataset, sparse_recipe)
        shutil.copytree(out / "sparse" / "model", out / "model")
        model = inazuma.load(out / "model")
        write_json(records / "selection.json", selection_picture(model, dataset, size.context))
        prompts = beginnings(dataset) if corpus.get("names") else PROMPTS
        write_json(records / "samples.json", list(samples(model, prompts, size.sample_tokens)))
        speeds = [line["tokens_per_second"] for line in Run.open(out / "sparse").metrics() if line["kind"] == "train"]
        facts = {
            "tokens_per_second": float(np.median(speeds)),
            "context": size.context,
            "topk": size.topk,
            "engine": engine_for(next(trainer.train_step.model.parameters())),
            "parameters": sum(x.numel() for x in model.parameters()),
            "training_tokens": trainer.total_steps * size.batch_tokens,
            "seconds": round(time.perf_counter() - began, 1),
        }
        write_json(records / "facts.json", facts)
        result = produce(out, evidence(sparse_recipe.model.num_hidden_layers))
        write_report(out)
        run.finish("finished")
        return result
    except BaseException as error:
        run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def check_long_enough(dataset: Dataset, size: DemoSize) -> None:
    """Raises `UserError` where no validation document is so long that a query leaves anything out."""
    windows = evaluation_windows(dataset.validation, context=size.context, rows=1, max_tokens=size.validation_tokens)
    if all((np.arange(size.context) - window.first).max() < size.topk for window in windows):
        raise UserError(
            f"no validation document is longer than the {size.topk} tokens that each query reads, so nothing would be "
            "sparse; use longer documents, or join short ones"
        )


def recipes(size: DemoSize, dataset: Dataset) -> tuple[TrainConfig, TrainConfig]:
    """The sparse model's recipe and its twin's: the same weights to begin with, batches, and learning rates."""
    model = ModelConfig(
        vocab_size=dataset.vocab_size,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.layers,
        intermediate_size=3 * size.hidden_size,
        index_topk=size.topk,
        index_n_heads=16,  # with fewer, exact zeros tie so often that readers who break ties otherwise differ
        rope_theta=1000.0,  # the slowest pair still turns within the context
        max_position_embeddings=max(2048, size.context),
        bos_token_id=dataset.end_of_text,
        eos_token_id=dataset.end_of_text,
    )
    lr = 4e-3
    sparse = TrainConfig(
        data=dataset.path,
        model=model,
        context=size.context,
        batch_tokens=size.batch_tokens,
        optimizer=OptimizerConfig(embedding_lr_factor=5.0),
        precision=faster_precision(),
        validate_every=50,
        validation_tokens=min(size.validation_tokens, 16_384),
        checkpoint_every=100,
        keep_checkpoints=1,
        stages=(
            Stage(stage="dense", tokens=size.dense_tokens, lr=lr, warmup=0.05, train_indexer=False),
            Stage(stage="warmup", tokens=size.warmup_tokens, lr=lr, index_lr=1e-2),
            Stage(stage="sparse", tokens=size.sparse_tokens, lr=lr, index_lr=3e-3, decay=1.0),
        ),
    )
    steps = sparse.stage_ends()
    total = steps[-1] * size.batch_tokens
    twin = Stage(
        stage="dense",
        tokens=total,
        lr=lr,
        warmup=0.05 * steps[0] / steps[-1],
        decay=(steps[-1] - steps[1]) / steps[-1],
    )
    return sparse, replace(sparse, model=replace(model, index_topk=None), stages=(twin,))


def faster_precision() -> str:
    """bfloat16 where this machine multiplies matrices clearly faster in it (many processors only emulate it)."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2048, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        runs = []
        for _ in range(7):
            start = time.perf_counter()
            a @ b
            runs.append(time.perf_counter() - start)
        times[dtype] = sorted(runs)[2]
    return "bfloat16" if times[torch.bfloat16] < 0.7 * times[torch.float32] else "float32"


def measure(out: Path, dataset: Dataset, recipe: TrainConfig) -> None:
    """Writes the raw records that the figures are computed from, all over the same validation documents, in float32."""
    size = {"context": recipe.context, "max_tokens": Run.open(out).manifest["config"]["validation_tokens"]}
    split, records = dataset.validation, out / "records"
    losses: DocumentLosses | None = None
    for name, stage in (("sparse", "frozen"), ("dense", "dense")):
        model = inazuma.load(out / name / "model")
        losses = document_losses(model, split, evaluation_windows(split, rows=4, **size), stage=stage)
        write_documents(records / f"documents.{name}.jsonl", dataset, losses, losses.nll)
    bigram = Bigram(training_batches(recipe, dataset), dataset.vocab_size)
    nats = bigram_losses(bigram, evaluation_windows(split, rows=4, **size), split.documents)[losses.document]
    write_documents(records / "documents.ngram.jsonl", dataset, losses, nats)
    model = inazuma.load(out / "sparse" / "model")
    nats = np.array(list(gzip_losses(split, losses.document, tokenizer_of(model))))
    write_documents(records / "documents.gzip.jsonl", dataset, losses, nats)
    with atomic_file(records / "layers.jsonl") as handle:
        judged = 0
        for window, batch in enumerate(evaluation_windows(split, rows=1, **size)):
            qualities = selection_qualities(model, batch, stage="frozen")
            if qualities[0].queries:  # a window of short documents keeps everything and says nothing
                for layer, quality in enumerate(qualities):
                    handle.write(json.dumps({"layer": layer, "window": window, **quality._asdict()}) + "\n")
                judged += 1
            if judged == Run.open(out).manifest["config"]["selection_windows"]:
                break


def training_batches(recipe: TrainConfig, dataset: Dataset) -> Iterable[Batch]:
    """The very batches that the models were trained on."""
    for step in range(recipe.stage_ends()[-1]):
        yield training_windows(
            dataset.train,
            context=recipe.context,
            position=step * recipe.rows,
            count=recipe.rows,
            seed=recipe.seed,
        )


def write_documents(path: Path, dataset: Dataset, losses: DocumentLosses, nats: np.ndarray) -> None:
    """One line a document: its number, source, nats, targets and bytes."""
    with atomic_file(path) as handle:
        for document, nll, tokens, size in zip(losses.document, nats, losses.tokens, losses.bytes, strict=True):
            line = {
                "document": int(document),
                "source": Path(dataset.validation.source(int(document))).name,
                "nll": float(nll),
                "tokens": int(tokens),
                "bytes": int(size),
            }
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")


def evidence(layers: int) -> dict[str, Mapping[str, Any]]:
    """How every figure of result.json follows from the records."""
    names = ("sparse", "dense", "ngram", "gzip")
    document = {name: f"records/documents.{name}.jsonl" for name in names}
    figures: dict[str, Mapping[str, Any]] = {
        f"bits_per_byte.{name}": {"formula": "bits_per_byte", "record": document[name]} for name in names
    }
    bootstrap = {"formula": "bootstrap_interval", "seed": 0}
    for name in names[1:]:
        pair = [f"bits_per_byte.{model}" for model in ("sparse", name)]
        figures[f"difference.{name}.relative"] = {"formula": "relative_difference", "of": pair}
        figures[f"difference.{name}.interval"] = {**bootstrap, "record": document["sparse"], "against": document[name]}
    for name in names:
        figures[f"interval.{name}"] = {**bootstrap, "record": document[name]}
    columns = {
        "recall_at_k": "recall",
        "attention_mass": "mass",
        "recall_recent": "recent_recall",
        "attention_mass_recent": "recent_mass",
    }
    for figure, column in columns.items():
        for layer in range(layers):
            figures[f"{figure}.{layer}"] = {
                "formula": "mean",
                "record": "records/layers.jsonl",
                "column": column,
                "where": {"layer": layer},
            }
    for name in ("tokens_per_second", "context", "topk", "engine", "parameters", "training_tokens", "seconds"):
        figures[name] = {"formula": "value", "record": "records/facts.json", "field": name}
    figures["validation_documents"] = {"formula": "count", "record": document["sparse"], "column": "document"}
    return figures


@torch.no_grad()
def selection_picture(model: Transformer, dataset: Dataset, context: int) -> dict[str, Any]:
    """For some queries of the longest validation document: what the middle layer's indexer picks, and where its dense
    attention would put its mass.
    """
    split = dataset.validation
    lengths = np.diff(split.document_start)
    document = int(np.argmax(np.minimum(lengths, context)))
    start = int(split.document_start[document])
    ids = torch.from_numpy(split.read(start, start + min(int(lengths[document]), context)))
    seen: list[Observation] = []
    model(ids[None], observe=seen.append)
    layer = seen[len(seen) // 2]
    k = model.config.index_topk
    picked = select_tokens(*layer.index, k)[0]
    positions = [len(ids) * part // 8 - 1 for part in (3, 5, 7, 8)]
    queries = []
    for position in positions:
        q = layer.q[0, position].float() * layer.scale  # [H, D]
        scores = torch.einsum("hd,shd->hs", q, layer.k[0, : position + 1].float().expand(-1, len(q), -1))
        chosen = picked[position]
        queries.append(
            {
                "position": position,
                "selected": chosen[chosen >= 0].tolist(),
                "attention": scores.softmax(-1).mean(0).tolist(),
            }
        )
    tokenizer = tokenizer_of(model)
    tokens = [tokenizer.decode([id], skip_special_tokens=False) for id in ids.tolist()]
    return {"layer": layer.layer, "topk": k, "tokens": tokens, "queries": queries}


def beginnings(dataset: Dataset) -> list[str]:
    """How three validation documents begin."""
    split, tokenizer = dataset.validation, Tokenizer.from_file(str(dataset.path / "tokenizer.json"))
    bounds = split.document_start[: min(3, split.documents) + 1].tolist()
    pairs = pairwise(bounds)  # a document's first token is the marker
    return [tokenizer.decode(split.read(start + 1, min(start + 17, stop)).tolist()) for start, stop in pairs]


def samples(model: Transformer, prompts: Sequence[str], tokens: int) -> Iterable[dict[str, str]]:
    """What the model writes after each prompt, sampled with a fixed seed."""
    for prompt in prompts:
        text = continue_text(model, prompt, tokens, temperature=0.7, top_p=0.9, seed=1)
        yield {"prompt": prompt, "text": text}
