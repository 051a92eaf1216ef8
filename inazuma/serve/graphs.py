"""Writing on a GPU: a step that reads one token of each text is captured once and then replayed (CUDA graphs).

A model of thirty layers launches some two thousand kernels for a token, each of which takes a GPU less time than Python
takes to ask for it. A graph is of one size: so many texts, so many pages each, both rounded up to powers of two. Where
there are fewer texts the last one stands for those that are missing: it writes what it writes to where it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inazuma.ops.pool import PAGE

MOST_TEXTS = 64
MOST_KEYS = 1 << 20
"""Texts times positions of a step that is captured: what its kernels need stays taken."""


class Written(NamedTuple):
    """A text whose next token is read: `pages` has at least those up to its position `at`."""

    token: int
    at: int
    pages: Sequence[int]


class Inputs:
    """One token of each of N texts, at fixed addresses."""

    def __init__(self, texts: int, pages: int, selects: bool, device: torch.device):
        self._wide = torch.zeros(3, texts, dtype=torch.int64, device=device)
        self.tokens_N, self.positions_N, self.slots_N = self._wide
        self.last_N = torch.zeros(texts, dtype=torch.int32, device=device)
        self.tables = torch.zeros(texts, pages, dtype=torch.int32, device=device)
        self.rows_N = torch.arange(texts, dtype=torch.int32, device=device)
        self.selects = selects
        """Whether every text selects; one that sees no more than k keys selects them all."""

    def fill(self, texts: Sequence[Written]) -> None:
        missing = len(self.rows_N) - len(texts)
        texts = [*texts, *[texts[-1]] * missing]
        slots = [text.pages[text.at // PAGE] * PAGE + text.at % PAGE for text in texts]
        self._wide.copy_(torch.tensor([[text.token for text in texts], [text.at for text in texts], slots]))
        tables = [torch.tensor(text.pages[: text.at // PAGE + 1], dtype=torch.int32) for text in texts]
        self.tables.copy_(torch.stack([F.pad(table, (0, self.tables.shape[1] - len(table))) for table in tables]))
        self.last_N.copy_(self.positions_N)


class Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    logits_NV: Tensor
    hidden_NE: Tensor


class Graphs:
    """`forward` of `Inputs` gives logits `[N,V]` and hidden states `[N,E]`, and never waits for the GPU."""

    def __init__(self, forward: Callable[[Inputs], tuple[Tensor, Tensor]], topk: int | None, device: torch.device):
        self._forward, self._topk, self._device = forward, topk, device
        self._graphs: dict[tuple[int, int, bool], Graph] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def step(self, texts: Sequence[Written]) -> tuple[Tensor, Tensor] | None:
        """Reads a token of each text; logits `[texts,V]` and hidden states `[texts,E]`. None: too many, or too long."""
        furthest = max(text.at for text in texts)
        count, pages = rounded(len(texts)), rounded(furthest // PAGE + 1)
        if count > MOST_TEXTS or count * pages * PAGE > MOST_KEYS:
            return None
        size = count, pages, self._topk is not None and furthest >= self._topk
        if size not in self._graphs:
            self._graphs[size] = self._captured(Inputs(*size, self._device), texts)
        graph, inputs, logits_NV, hidden_NE = self._graphs[size]
        inputs.fill(texts)
        graph.replay()
        # The next replay writes there again.
        return logits_NV[: len(texts)].clone(), hidden_NE[: len(texts)].clone()

    def _captured(self, inputs: Inputs, texts: Sequence[Written]) -> Graph:
        # What libraries and kernels set up when they first run cannot be captured. The texts write their own keys.
        inputs.fill(texts)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._forward(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logits_NV, hidden_NE = self._forward(inputs)
        return Graph(graph, inputs, logits_NV, hidden_NE)


def rounded(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
