"""Validation: bits per byte of whole documents, and how well the indexers select."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inazuma.data.batches import IGNORE, Batch
from inazuma.data.shards import Split
from inazuma.model import Transformer
from inazuma.model.attention import Observation
from inazuma.ops import Stage, select_tokens
from inazuma.train.step import to_device, token_losses

QUERIES_AT_ONCE = 64
"""Queries whose dense attention is laid out at a time when selections are judged."""


class DocumentLosses(NamedTuple):
    """What each document cost, in the order of the split."""

    document: np.ndarray
    """int64 `[N]`, its number in the split."""
    nll: np.ndarray
    """float64 `[N]`, negative log-likelihood of its tokens and of its end, nats."""
    tokens: np.ndarray
    """int64 `[N]`, how many targets that were."""
    bytes: np.ndarray
    """int64 `[N]`, its raw UTF-8 length."""

    @property
    def bits_per_byte(self) -> float:
        """Comparable across tokenizers, unlike a loss per token."""
        return float(self.nll.sum() / math.log(2) / self.bytes.sum())


@torch.no_grad()
def document_losses(
    model: Transformer,
    split: Split,
    batches: Iterable[Batch],
    *,
    stage: Stage,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> DocumentLosses:
    """The loss of each document in `batches`, which must hold whole documents.

    A document longer than the context is read in pieces that do not see each other. Draws no random numbers and leaves
    the model as it was, so that validating cannot change training.
    """
    device = next(model.parameters()).device
    nll, tokens = np.zeros(split.documents), np.zeros(split.documents, dtype=np.int64)
    training = model.training
    model.eval()
    for batch in batches:
        ids, targets, first = to_device(batch, device)
        with autocast():
            logits = model(ids, first=first, stage=stage)
        losses = token_losses(logits, targets).double().cpu().numpy()
        counted = batch.targets != IGNORE
        np.add.at(nll, batch.document[counted], losses[counted])
        np.add.at(tokens, batch.document[counted], 1)
    model.train(training)
    seen = np.flatnonzero(tokens)
    return DocumentLosses(seen, nll[seen], tokens[seen], np.asarray(split.document_bytes[seen]))


class SelectionQuality(NamedTuple):
    """A layer's selection, judged by the dense attention over the same queries and keys. Means over the queries that
    see more than k keys: the others keep everything.
    """

    recall: float
    """Share of the k keys with the most attention (mean of heads) that the selection holds."""
    mass: float
    """Attention on the selected keys, mean of heads."""
    recent_recall: float
    """The same for the last k keys, which cost nothing to find."""
    recent_mass: float
    queries: int


def selection_quality(seen: Observation, k: int) -> SelectionQuality:
    """Judges one layer's selection; see `SelectionQuality`."""
    first, last = seen.context.first, seen.context.last
    indices = seen.result.indices
    if indices is None:
        indices = select_tokens(*seen.index, k, first=first, last=last)
    T, H = seen.q.shape[1:3]
    S, G = seen.k.shape[1:3]
    keys = seen.k.float()
    position = torch.arange(S, device=keys.device)
    sums = torch.zeros(5, dtype=torch.float64, device=keys.device)
    for start in range(0, T, QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        queries = (seen.q[:, rows].float() * seen.scale).unflatten(2, (G, H // G))
        low, high = first[:, rows, None], last[:, rows, None]
        visible = (position >= low) & (position <= high)
        scores = torch.einsum("btgnd,bsgd->btgns", queries, keys)
        attention_BTS = scores.masked_fill(~visible[:, :, None, None], -math.inf).softmax(-1).mean((2, 3))
        counted = (visible.sum(-1) > k).double()

        def sets(indices_BTK: Tensor, like: Tensor = attention_BTS) -> Tensor:
            spare = like.new_zeros(*like.shape[:2], like.shape[2] + 1, dtype=torch.bool)
            return spare.scatter_(2, torch.where(indices_BTK < 0, like.shape[2], indices_BTK).long(), True)[..., :-1]

        best = sets(attention_BTS.topk(min(k, S), dim=-1).indices)
        chosen, recent = sets(indices[:, rows]), visible & (position > high - k)
        for place, kept in ((0, chosen), (2, recent)):
            sums[place] += ((kept & best).sum(-1) / k * counted).sum()
            sums[place + 1] += ((attention_BTS * kept).sum(-1) * counted).sum()
        sums[4] += counted.sum()
    n = float(sums[4])
    means = (sums[:4] / n).tolist() if n else [math.nan] * 4
    return SelectionQuality(*means, int(n))


@torch.no_grad()
def selection_qualities(
    model: Transformer, batch: Batch, *, stage: Stage, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> list[SelectionQuality]:
    """Every layer's selection on one batch; `stage` is "warmup" (attending densely) or "frozen" (sparsely)."""
    found: list[SelectionQuality] = []
    ids, _, first = to_device(batch, next(model.parameters()).device)
    training = model.training
    model.eval()
    with autocast():
        model(
            ids,
            first=first,
            stage=stage,
            output_index_loss=stage == "warmup",
            observe=lambda seen: found.append(selection_quality(seen, model.config.index_topk)),
        )
    model.train(training)
    return found
