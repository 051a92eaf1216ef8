"""Bits per byte and the judgement of selections, against computations that share no code with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from inazuma.data.batches import evaluation_windows
from inazuma.data.shards import Dataset
from inazuma.model import ModelConfig, Transformer
from inazuma.model.text import tokenizer_of
from inazuma.train.validate import document_losses, selection_qualities
from tests.train.recipes import CONTEXT, MODEL


@pytest.fixture
def model(corpus: Path) -> Transformer:
    model = Transformer(ModelConfig(**MODEL)).init_weights(3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that neither attention nor logits are flat
    model.tokenizer_folder = corpus
    return model


def test_bits_per_byte_are_those_of_each_document_alone(corpus: Path, model: Transformer) -> None:
    """Packed and masked, against one document at a time."""
    split = Dataset.open(corpus).validation
    tokenizer = tokenizer_of(model)
    whole = evaluation_windows(split, context=4096, rows=1)  # nothing is cut
    losses = document_losses(model, split, whole, stage="frozen")
    assert len(losses.document) == split.documents > 5
    for document, nll, tokens, size in zip(*losses, strict=True):
        start, stop = split.document_start[document : document + 2]
        ids = torch.tensor([[*split.read(start, stop).tolist(), 0]])
        alone = -model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None]).sum().item()
        assert nll == pytest.approx(alone, rel=1e-6)
        text = tokenizer.decode(ids[0, 1:-1].tolist())
        assert tokenizer.encode(text).ids == ids[0, 1:-1].tolist()
        assert (tokens, size) == (ids.shape[1] - 1, len(text.encode()))
    expected = losses.nll.sum() / math.log(2) / losses.bytes.sum()
    assert losses.bits_per_byte == pytest.approx(expected)


@pytest.mark.parametrize("stage", ["warmup", "frozen"])
def test_selections_are_judged_as_by_hand(corpus: Path, model: Transformer, stage: str) -> None:
    split = Dataset.open(corpus).validation
    batch = next(iter(evaluation_windows(split, context=CONTEXT, rows=2)))
    seen = []
    model(
        torch.from_numpy(batch.ids),
        first=torch.from_numpy(batch.first),
        stage=stage,
        output_index_loss=stage == "warmup",
        observe=seen.append,
    )
    judged = selection_qualities(model, batch, stage=stage)
    k = MODEL["index_topk"]
    for layer, quality in zip(seen, judged, strict=True):
        recalls, masses, recents = [], [], []
        for row in range(2):
            for t in range(CONTEXT):
                keys = list(range(int(batch.first[row, t]), t + 1))
                if len(keys) <= k:
                    continue
                attention = torch.zeros(len(keys))
                scores = []
                heads_to_a_key = layer.q.shape[2] // layer.k.shape[2]
                for head in range(layer.q.shape[2]):
                    products = layer.k[row, keys, head // heads_to_a_key].double() @ layer.q[row, t, head].double()
                    attention += (products * layer.scale).softmax(0) / layer.q.shape[2]
                products = (layer.index.k[row, keys].double() @ layer.index.q[row, t].double().T).relu()
                scores = (products @ layer.index.w[row, t].double()).tolist()
                picked = set(sorted(range(len(keys)), key=lambda s: (-scores[s], s))[:k])
                best = set(attention.topk(k).indices.tolist())
                recalls.append(len(picked & best) / k)
                masses.append(sum(attention[s].item() for s in picked))
                recents.append(sum(attention[-k:]).item())
        assert quality.queries == len(recalls) > 10
        assert quality.recall == pytest.approx(sum(recalls) / len(recalls), abs=1e-6)
        assert quality.mass == pytest.approx(sum(masses) / len(masses), abs=1e-5)
        assert quality.recent_mass == pytest.approx(sum(recents) / len(recents), abs=1e-5)
