"""Does transformers compute the same from a trained checkpoint? `python benchmarks/parity.py runs/demo`.

Both read whole validation documents in float32, at lengths below and above k. Above it a selection that hangs on a tie
may differ: of equal scores we take the lowest index, `torch.topk` any. So a position counts as *hanging on a tie* when
it, or an earlier one that it can read, has a k-th and a next score that are equal to float32's rounding in some layer.
Everywhere else the logits must agree. The record goes to `benchmarks/results/parity.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import inazuma
from inazuma.data.shards import Dataset
from inazuma.files import write_json
from inazuma.model import Transformer
from inazuma.model.attention import Observation
from inazuma.runs import surroundings

RESULT = Path(__file__).parent / "results" / "parity.json"
LIMIT = 1e-4
ROUNDING = 1e-6
"""Of the largest score: closer than this, two scores are in no certain order in float32."""


def tied(seen: Observation, k: int) -> torch.Tensor:
    """Bool `[T]`: the queries whose k-th and next score are equal up to rounding."""
    q, keys, w = (x[0].double() for x in seen.index)
    scores = torch.einsum("ti,tis->ts", w, torch.einsum("tic,sc->tis", q, keys).relu())
    T = len(scores)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    best = scores.masked_fill(hidden, -torch.inf).topk(k + 1).values
    largest = scores.masked_fill(hidden, 0).abs().amax(-1)
    return (torch.arange(T) >= k) & (best[:, k - 1] - best[:, k] <= ROUNDING * largest)


@torch.no_grad()
def logits_and_ties(ours: Transformer, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one text `[1, T]`: our logits `[T, V]`, and bool `[T]`, the positions that hang on a tie."""
    seen: list[Observation] = []
    logits = ours(ids, observe=seen.append)[0]
    k = ours.config.index_topk
    ties = torch.zeros(ids.shape[1], dtype=torch.bool)
    if k is not None and ids.shape[1] > k:
        # The first layer's ties reach what reads them; the last layer's only their own position.
        *earlier, last = (tied(layer, k) for layer in seen)
        for layer in earlier:
            ties |= layer.cumsum(0) > 0
        ties |= last
    return logits, ties


@torch.no_grad()
def compare(ours: Transformer, theirs: torch.nn.Module, ids: torch.Tensor) -> dict[str, float]:
    """Of one text: how far the logits differ, at the positions that hang on a tie and at the others."""
    logits, ties = logits_and_ties(ours, ids)
    difference = (logits - theirs(ids).logits[0]).abs().amax(-1)
    return {
        "tokens": ids.shape[1],
        "hanging_on_a_tie": int(ties.sum()),
        "largest_difference_elsewhere": float(difference[~ties].max()),
        "differing_at_a_tie": int((difference[ties] > LIMIT).sum()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Holds a trained checkpoint against transformers.")
    parser.add_argument("run", type=Path, help="a folder that `inazuma demo` left")
    parser.add_argument("--documents", type=int, default=8, help="how many, the longest first (default: 8)")
    arguments = parser.parse_args()
    ours = inazuma.load(arguments.run / "model")
    theirs, info = AutoModelForCausalLM.from_pretrained(arguments.run / "model", output_loading_info=True)
    if any(info.values()):
        sys.exit(f"transformers does not read the checkpoint as it is: {info}")
    split = Dataset.open(arguments.run / "data").validation
    lengths = np.diff(split.document_start)
    rows = []
    for document in np.argsort(-lengths, kind="stable")[: arguments.documents].tolist():
        start = int(split.document_start[document])
        for length in (ours.config.index_topk, min(int(lengths[document]), 4 * ours.config.index_topk)):
            ids = torch.from_numpy(split.read(start, start + length))[None]
            rows.append({"document": document, **compare(ours, theirs.eval(), ids)})
    record = {
        "limit": LIMIT,
        "largest_difference_elsewhere": max(row["largest_difference_elsewhere"] for row in rows),
        "index_topk": ours.config.index_topk,
        "texts": rows,
        "code": surroundings.code(),
        "machine": surroundings.machine(),
        "packages": surroundings.packages(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, record)
    print(json.dumps({name: record[name] for name in ("limit", "largest_difference_elsewhere", "texts")}, indent=2))
    return int(record["largest_difference_elsewhere"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
