"""A model's forward pass as serving needs it: pieces of several texts at once, over paged caches, from packed weights.

It computes what `inazuma.model.Transformer` does. What it does besides: every token's result depends on its own text
alone, bit for bit, not on how the text is cut in pieces nor on what else is read with it, because every product and
every sum has an order of its own (`inazuma.ops.packed`, `inazuma.ops.paged`).

Suffixes: N tokens of all pieces, E hidden width, H query heads, G key-value heads, R latent width, P width with RoPE,
D head width, I index heads, C index width, V vocabulary, K experts of a token.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.model.attention import Attention, GroupedQueryAttention, LatentAttention
from inazuma.model.config import ModelConfig
from inazuma.model.layers import RMSNorm, Rotation, SwiGLU
from inazuma.model.moe import Experts, MixtureOfExperts
from inazuma.model.transformer import DecoderLayer, PredictionLayer, Transformer
from inazuma.ops import packed
from inazuma.ops.packed import Packed
from inazuma.ops.paged import attend, select
from inazuma.ops.pool import PAGE, Pool
from inazuma.serve.graphs import Graphs, Inputs, Written

Weights = Literal["none", "int8", "int4"]
Format = Literal["float32", "bfloat16", "fp8"]


class Piece(NamedTuple):
    """Tokens of one text that are read now."""

    tokens: Sequence[int]
    start: int
    """The position of the first of them; what comes before has been read."""
    pages: Sequence[int]
    """The text's, up to the last of these tokens."""
    logits: int = 1
    """How many of the last tokens' logits are wanted."""
    observe: bool = False
    """Whether the selections of the last token are wanted."""


@dataclass
class Output:
    logits: Tensor
    """float32, the wanted rows of all pieces in order, `[.,V]`."""
    hidden_NE: Tensor
    """float32: the last layer's output after its norm, of every token."""
    selections: list[list[tuple[int, ...] | None]] = field(default_factory=list)
    """For each piece that asked: a layer each, the positions its last token reads; None where a layer is dense."""


class Group(NamedTuple):
    """Tokens that one call of an operator takes."""

    at: Tensor | None
    """Which of the N tokens, int64; None where it is all of them."""
    tables: Tensor
    rows: Tensor
    last: Tensor
    selects: bool
    """Whether they select, or read all that they see: no more than k keys."""


class Batch:
    """Where the tokens of some pieces are: what all layers share in one pass."""

    def __init__(self, positions_N: Tensor, slots_N: Tensor, groups: Sequence[Group]):
        self.positions_N, self.slots_N, self.groups = positions_N, slots_N, groups
        self.observed: list[int] = []
        """The tokens whose selections are wanted."""
        self.selections: list[list[tuple[int, ...] | None]] = []
        self._last: list[int] = []
        self._selecting: list[int] = []

    @classmethod
    def of(cls, pieces: Sequence[Piece], topk: int | None, device: torch.device) -> Batch:
        places = [(number, piece.start + i) for number, piece in enumerate(pieces) for i in range(len(piece.tokens))]
        slots = [pieces[number].pages[at // PAGE] * PAGE + at % PAGE for number, at in places]
        # C++ takes all pieces at once. On a GPU the tokens of a longer one share tiles of keys, and come by themselves.
        members: dict[tuple[int, bool], list[int]] = {}
        for n, (number, at) in enumerate(places):
            apart = number if device.type != "cpu" and len(pieces[number].tokens) > 1 else -1
            members.setdefault((apart, topk is not None and at >= topk), []).append(n)
        groups = []
        for (_, selects), tokens in members.items():
            chosen = list(dict.fromkeys(places[n][0] for n in tokens))
            row = {number: i for i, number in enumerate(chosen)}
            widest = max(len(pieces[number].pages) for number in chosen)
            tables = [[*pieces[number].pages, *[0] * (widest - len(pieces[number].pages))] for number in chosen]
            numbers = tables, [row[places[n][0]] for n in tokens], [places[n][1] for n in tokens]
            group = (torch.tensor(x, dtype=torch.int32, device=device) for x in numbers)
            at = torch.tensor(tokens, device=device) if len(members) > 1 else None
            groups.append(Group(at, *group, selects))
        batch = cls(*(torch.tensor(x, device=device) for x in ([at for _, at in places], slots)), groups)
        ends = itertools.accumulate(len(piece.tokens) for piece in pieces)
        batch.observed = [end - 1 for piece, end in zip(pieces, ends, strict=True) if piece.observe]
        batch.selections = [[] for _ in batch.observed]
        batch._last = [at for _, at in places]
        batch._selecting = [n for (_, selects), tokens in members.items() if selects for n in tokens]
        return batch

    def select(self, index_q_NIC: Tensor, index_w_NI: Tensor, pool: Pool, k: int) -> Tensor | None:
        """The selections of the tokens that select, int32 `[.,k]`, group by group; None where none does."""
        found = []
        for group in self.groups:
            if group.selects:
                q, w = (x if group.at is None else x[group.at] for x in (index_q_NIC, index_w_NI))
                found.append(select(q, w, pool, group.tables, group.rows, group.last, k))
        return torch.cat(found) if len(found) > 1 else found[0] if found else None

    def attend(
        self, q_NHD: Tensor, keys: Pool, values: Pool | None, scale: float, indices: Tensor | None, value_width: int
    ) -> Tensor:
        """Attention over what was selected, and over everything where a token does not select; `[N,H,value_width]`."""
        shared = {"scale": scale, "value_width": value_width if values is None else None}
        out, begin = None, 0
        for at, tables, rows, last, selects in self.groups:
            kept = None
            if selects:
                kept, begin = indices[begin : begin + len(rows)], begin + len(rows)
            q = q_NHD if at is None else q_NHD[at]
            part = attend(q, keys, values, tables, rows, last, indices=kept, **shared)
            if at is None:
                return part
            out = q_NHD.new_empty(*q_NHD.shape[:2], value_width) if out is None else out
            out[at] = part
        return out

    def note(self, indices: Tensor | None, sparse: bool) -> None:
        """Keeps what a layer selected for the tokens that are observed."""
        for selections, token in zip(self.selections, self.observed, strict=True):
            if not sparse:
                selections.append(None)
            elif token not in self._selecting:
                selections.append(tuple(range(self._last[token] + 1)))
            else:
                selections.append(tuple(x for x in indices[self._selecting.index(token)].tolist() if x >= 0))


class Runner:
    """A model made ready to serve. Its weights are packed; those of `model` that were packed are let go."""

    def __init__(
        self,
        model: Transformer,
        *,
        pages: int,
        context: int,
        weights: Weights = "none",
        format: Format = "bfloat16",
        progress: Callable[[int], None] = lambda layers: None,
    ):
        config = self.config = model.config
        self.device = next(model.parameters()).device
        self.context, self.pages, self.format = context, pages, format
        packer = _Packer(weights)
        self._limit = getattr(model, "memory_limit", None)
        positions = torch.arange(context, device=self.device)[None]
        tables = _Tables(
            Rotation(positions, config.rope_head_dim, config),
            Rotation(positions, config.index_rope_head_dim, config) if config.index_topk is not None else None,
        )
        self._embedding = model.model.embed_tokens.weight.detach()
        self._layers = []
        for number, layer in enumerate(model.model.layers):
            self._layers.append(_Layer(config, number, layer, packer, tables, pages, format))
            progress(number + 1)
        self._predictors = [
            _Predictor(layer, packer, parts)
            for layer, parts in zip(model.prediction_layers, self._layers[config.num_hidden_layers :], strict=True)
        ]
        self._layers = self._layers[: config.num_hidden_layers]
        self._norm = _Norm(model.model.norm)
        self._head = packer.head(model.lm_head.weight)
        self.weight_bytes = packer.nbytes + self._embedding.nbytes
        captured = self.device.type == "cuda" and all(layer.captured for layer in self._layers)
        self._graphs = Graphs(self._decode, config.index_topk, self.device) if captured else None
        self.page_bytes = PAGE * sum(pool.row_bytes for layer in self._all() for pool in layer.pools)

    def _all(self) -> list[_Layer]:
        return self._layers + [predictor.parts for predictor in self._predictors]

    @property
    def predicts(self) -> bool:
        """Whether the model can guess a token ahead."""
        return bool(self._predictors)

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> Output:
        """Reads the pieces' tokens: writes their keys to the caches and returns the logits that were asked for."""
        if self._limit is not None:
            self._limit.make_room(sum(len(piece.tokens) for piece in pieces))
        if self._graphs is not None and all(len(p.tokens) == 1 == p.logits and not p.observe for p in pieces):
            written = self._graphs.step([Written(piece.tokens[0], piece.start, piece.pages) for piece in pieces])
            if written is not None:
                return Output(*written)
        batch = Batch.of(pieces, self.config.index_topk, self.device)
        hidden_NE = self._hidden(self._embed([token for piece in pieces for token in piece.tokens]), batch)
        return Output(self._logits(hidden_NE, pieces), hidden_NE, batch.selections)

    def _hidden(self, x_NE: Tensor, batch: Batch) -> Tensor:
        pending, shared = None, None
        for layer in self._layers:
            pending, shared = layer(x_NE, pending, batch, shared)
        return self._norm.after_adding(x_NE, pending)

    def _decode(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits and hidden states of a token of each text."""
        group = Group(None, inputs.tables, inputs.rows_N, inputs.last_N, inputs.selects)
        batch = Batch(inputs.positions_N, inputs.slots_N, [group])
        hidden_NE = self._hidden(F.embedding(inputs.tokens_N, self._embedding).float(), batch)
        return self._head(hidden_NE), hidden_NE

    def fixed_seconds(self) -> float:
        """What a step takes that reads a few tokens of a prompt, on a GPU; on a CPU, where it is little, 0. To be asked
        before there are any texts: it writes to the first page."""
        if self.device.type == "cpu":
            return 0.0
        piece, seconds = Piece([0] * 16, 0, [0]), []
        for _ in range(4):  # the first one compiles
            started = time.perf_counter()
            self.step([piece]).logits.cpu()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    @torch.inference_mode()
    def predict(self, pieces: Sequence[Piece], hidden_NE: Tensor) -> Tensor:
        """Logits of the tokens after the next ones, by the first layer for multi-token prediction.

        Args:
            pieces: as they were read, but with the tokens that follow each of theirs.
            hidden_NE: what `step` made of those that it read.
        """
        [predictor, *_] = self._predictors
        batch = Batch.of(pieces, self.config.index_topk, self.device)
        embedded_NE = self._embed([token for piece in pieces for token in piece.tokens])
        return self._logits(predictor(embedded_NE, hidden_NE, batch), pieces)

    def _embed(self, tokens: list[int]) -> Tensor:
        return F.embedding(torch.tensor(tokens, device=self.device), self._embedding).float()

    def _logits(self, hidden_NE: Tensor, pieces: Sequence[Piece]) -> Tensor:
        wanted, end = [], 0
        for piece in pieces:
            end += len(piece.tokens)
            wanted.extend(range(end - piece.logits, end))
        if len(wanted) < len(hidden_NE):
            hidden_NE = hidden_NE[torch.tensor(wanted, dtype=torch.long, device=self.device)]
        return self._head(hidden_NE)


def page_bytes(config: ModelConfig, format: Format) -> int:
    """Of one page in the caches of all layers, those for multi-token prediction among them."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    if config.attention == "mla":
        plain = config.qk_rope_head_dim if format == "fp8" else 0
        row = layers * Pool(1, 1, config.kv_lora_rank + config.qk_rope_head_dim, format, plain=plain).row_bytes
    else:
        row = 2 * layers * Pool(1, config.num_key_value_heads, config.head_dim, format).row_bytes
    if config.index_topk is not None:
        indexers = sum(config.has_indexer(layer) for layer in range(layers))
        row += indexers * index_pool(config, 1, format, torch.device("cpu")).row_bytes
    return PAGE * row


def index_pool(config: ModelConfig, pages: int, format: Format, device: torch.device) -> Pool:
    """The index keys beside a cache of that format: on a CPU by column, in whole numbers of as many bits."""
    if device.type != "cpu":
        return Pool(pages, 1, config.index_head_dim, format, device=device)
    whole = {"float32": "float32", "bfloat16": "int16", "fp8": "int8"}[format]
    return Pool(pages, 1, config.index_head_dim, whole, by_column=True)


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


class _Tables(NamedTuple):
    main: Rotation
    index: Rotation | None


class _Packer:
    """Packs weights, and counts their bytes."""

    def __init__(self, weights: Weights):
        self.kind, self.nbytes = None if weights == "none" else weights, 0
        """What weights are made: None leaves them as exact as they are."""

    def __call__(self, *linears: nn.Linear) -> Packed:
        """Linear layers that read the same input, as one."""
        bias = None
        if linears[0].bias is not None:
            bias = torch.cat([linear.bias for linear in linears])
        weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
        packed = self.weight(weight, bias, self.kind)
        for linear in linears:
            linear.weight, linear.bias = None, None
        return packed

    def weight(self, weight: Tensor, bias: Tensor | None = None, kind: str | None = None) -> Packed:
        """By default as exact as the weight is."""
        if kind is None:
            kind = "bfloat16" if weight.dtype == torch.bfloat16 else "float32"
        result = packed.pack(weight.detach(), None if bias is None else bias.detach(), kind)
        self.nbytes += result.nbytes
        return result

    def stacked(self, weight_HOK: Tensor) -> Tensor:
        """Matrices for one product of them all, `[H,K,O]`, which a GPU does at once."""
        weight = weight_HOK.detach().to(torch.bfloat16 if weight_HOK.dtype == torch.bfloat16 else torch.float32)
        self.nbytes += weight.nbytes
        return weight.mT.contiguous()

    def exact(self, *linears: nn.Linear) -> Packed:
        """What is never quantised, as one."""
        return self.weight(torch.cat([linear.weight.float() for linear in linears]), None, "float32")

    def head(self, weight: Tensor) -> Packed:
        return self.weight(weight, None, None if self.kind is None else "int8")


class _Norm:
    def __init__(self, norm: RMSNorm):
        self._weight, self._eps = norm.weight.detach().float().contiguous(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return packed.rms_norm(x, self._weight, self._eps)

    def after_adding(self, x: Tensor, y: Tensor) -> Tensor:
        """The norm of x + y, which x becomes."""
        return packed.add_rms_norm(x, y, self._weight, self._eps)


class _Layer:
    """A decoder layer, and its caches."""

    def __init__(
        self,
        config: ModelConfig,
        number: int,
        layer: DecoderLayer,
        packer: _Packer,
        tables: _Tables,
        pages: int,
        format: Format,
    ):
        self._input_norm, self._post_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        kind = {LatentAttention: _Latent, GroupedQueryAttention: _Grouped}[type(layer.self_attn)]
        self._attention = kind(config, number, layer.self_attn, packer, tables, pages, format)
        self._mlp = (_Mixture if isinstance(layer.mlp, MixtureOfExperts) else _SwiGLU)(layer.mlp, packer)
        self.pools = self._attention.pools
        self.captured = self._mlp.captured
        """Whether it never waits for a GPU."""

    def __call__(
        self, x_NE: Tensor, pending_NE: Tensor | None, batch: Batch, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Changes the residual stream `x_NE`. What is still to be added to it is passed on, so that adding and the norm
        after it are one operator."""
        hidden = self._input_norm(x_NE) if pending_NE is None else self._input_norm.after_adding(x_NE, pending_NE)
        attended, shared = self._attention(hidden, batch, shared)
        return self._mlp(self._post_norm.after_adding(x_NE, attended)), shared


class _Predictor:
    """A layer for multi-token prediction."""

    def __init__(self, layer: PredictionLayer, packer: _Packer, parts: _Layer):
        self.parts = parts
        self._embedded, self._hidden = _Norm(layer.enorm), _Norm(layer.hnorm)
        self._join, self._out = packer(layer.eh_proj), _Norm(layer.shared_head["norm"])

    def __call__(self, embedded_NE: Tensor, hidden_NE: Tensor, batch: Batch) -> Tensor:
        x_NE = self._join(torch.cat([self._embedded(embedded_NE), self._hidden(hidden_NE)], dim=-1))
        pending, _ = self.parts(x_NE, None, batch, None)
        return self._out.after_adding(x_NE, pending)


class _Attention:
    def __init__(self, config: ModelConfig, number: int, module: Attention, packer: _Packer, tables: _Tables):
        self.config, self._scale, self._tables = config, module.scale, tables
        self._indexes = config.has_indexer(number)
        self.pools: list[Pool] = []
        if self._indexes:
            indexer = module.indexer
            self._index_query = packer.weight(indexer.wq_b.weight)
            self._index_key = packer.exact(indexer.wk, indexer.weights_proj)
            self._key_norm = tuple(x.detach().float() for x in (indexer.k_norm.weight, indexer.k_norm.bias))

    def _select(self, hidden_NE: Tensor, query: Tensor, batch: Batch, shared: Tensor | None) -> Tensor | None:
        """The indexer: writes this layer's index keys and selects; or what the layer shares."""
        config = self.config
        if self._indexes:
            heads, width, rotation = config.index_n_heads, config.index_head_dim, self._tables.index
            q = self._index_query(query).unflatten(-1, (heads, width))
            k, w = self._index_key(hidden_NE).split([width, heads], dim=-1)
            k = F.layer_norm(k, (width,), *self._key_norm, 1e-6)[:, None].contiguous()
            for x in (q, k):
                _rotate(x, batch, rotation, 0, config.indexer_rope_interleave)
            self.pools[-1].write(batch.slots_N, k)
            w = (w * (heads * width) ** -0.5).contiguous()
            shared = batch.select(q, w, self.pools[-1], config.index_topk)
        batch.note(shared, config.index_topk is not None)
        return shared

    def _index_pool(self, pages: int, format: Format, device: torch.device) -> list[Pool]:
        return [index_pool(self.config, pages, format, device)] if self._indexes else []


def _rotate(x_NHD: Tensor, batch: Batch, rotation: Rotation, start: int, interleaved: bool) -> None:
    packed.rotate(x_NHD, batch.positions_N, rotation.cos[0], rotation.sin[0], start, interleaved)


class _Latent(_Attention):
    """Multi-head latent attention, absorbed."""

    def __init__(self, config, number, module: LatentAttention, packer: _Packer, tables, pages, format):
        super().__init__(config, number, module, packer, tables)
        H, R, P = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
        N, V = config.qk_nope_head_dim, config.v_head_dim
        weight = module.kv_b_proj.weight
        expand_k, expand_v = weight.detach().unflatten(0, (H, N + V)).split([N, V], dim=1)
        self._absorb = _Heads(expand_k.mT, packer)
        self._expand = _Heads(expand_v, packer)
        self._down = packer(module.q_a_proj, module.kv_a_proj_with_mqa)
        self._query_norm, self._latent_norm = _Norm(module.q_a_layernorm), _Norm(module.kv_a_layernorm)
        self._up, self._out = packer(module.q_b_proj), packer(module.o_proj)
        plain = P if format == "fp8" else 0
        self.pools = [
            Pool(pages, 1, R + P, format, plain=plain, device=weight.device),
            *self._index_pool(pages, format, weight.device),
        ]

    def __call__(self, hidden_NE: Tensor, batch: Batch, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config, interleaved = self.config, self.config.rope_interleave
        H, R, P = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
        N, L = config.qk_nope_head_dim, config.q_lora_rank
        query, latent, rope = self._down(hidden_NE).split([L, R, P], dim=-1)
        query = self._query_norm(query.contiguous())
        q_NHD = self._up(query).unflatten(-1, (H, N + P))
        _rotate(q_NHD, batch, self._tables.main, N, interleaved)
        key_N1D = torch.cat([self._latent_norm(latent.contiguous()), rope], dim=-1)[:, None]
        _rotate(key_N1D, batch, self._tables.main, R, interleaved)
        self.pools[0].write(batch.slots_N, key_N1D)
        q_NHD = torch.cat([self._absorb(q_NHD[..., :N]), q_NHD[..., N:]], dim=-1)
        indices = self._select(hidden_NE, query, batch, shared)
        out_NHR = batch.attend(q_NHD, self.pools[0], None, self._scale, indices, R)
        return self._out(self._expand(out_NHR).flatten(1)), indices


class _Heads:
    """A matrix for each head."""

    def __init__(self, weight_HOK: Tensor, packer: _Packer):
        self._stacked_HKO = packer.stacked(weight_HOK) if weight_HOK.is_cuda else None
        self._heads = [] if weight_HOK.is_cuda else [packer.weight(weight.contiguous()) for weight in weight_HOK]

    def __call__(self, x_NHK: Tensor) -> Tensor:
        if self._stacked_HKO is not None:
            x_HNK = x_NHK.transpose(0, 1).to(self._stacked_HKO.dtype)
            return torch.bmm(x_HNK, self._stacked_HKO).transpose(0, 1).float()
        x_HNK = x_NHK.transpose(0, 1).contiguous()
        return torch.stack([head(x) for head, x in zip(self._heads, x_HNK, strict=True)], dim=1)


class _Grouped(_Attention):
    """Grouped-query attention."""

    def __init__(self, config, number, module: GroupedQueryAttention, packer: _Packer, tables, pages, format):
        super().__init__(config, number, module, packer, tables)
        device = module.o_proj.weight.device
        self._project, self._out = packer(module.q_proj, module.k_proj, module.v_proj), packer(module.o_proj)
        self._norms = (_Norm(module.q_norm), _Norm(module.k_norm)) if config.use_qk_norm else None
        shape = pages, config.num_key_value_heads, config.head_dim, format
        self.pools = [
            Pool(*shape, device=device),
            Pool(*shape, device=device),
            *self._index_pool(pages, format, device),
        ]

    def __call__(self, hidden_NE: Tensor, batch: Batch, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        config = self.config
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        heads_NHD = self._project(hidden_NE).unflatten(-1, (H + 2 * G, D))
        q, k, v = heads_NHD.split([H, G, G], dim=1)
        if self._norms is not None:
            q, k = (norm(x.flatten(0, 1).contiguous()).view_as(x) for norm, x in zip(self._norms, (q, k), strict=True))
        for x in (q, k):
            _rotate(x, batch, self._tables.main, 0, config.rope_interleave)
        self.pools[0].write(batch.slots_N, k)
        self.pools[1].write(batch.slots_N, v)
        indices = self._select(hidden_NE, hidden_NE, batch, shared)
        out_NHD = batch.attend(q.contiguous(), self.pools[0], self.pools[1], self._scale, indices, D)
        return self._out(out_NHD.flatten(1)), indices


class _SwiGLU:
    captured = True

    def __init__(self, module: SwiGLU, packer: _Packer):
        self._gate_up, self._down = packer(module.gate_proj, module.up_proj), packer(module.down_proj)

    def __call__(self, x_NE: Tensor) -> Tensor:
        return self._down(packed.silu_mul(self._gate_up(x_NE)))


class _Expert:
    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, pack):
        self._gate_up, self._down = pack(torch.cat([gate, up])), pack(down)

    def __call__(self, x_NE: Tensor) -> Tensor:
        return self._down(packed.silu_mul(self._gate_up(x_NE)))


class _Mixture:
    """A mixture of experts; those that stay on disk compute as they are, and so do a GPU's, all at once."""

    def __init__(self, module: MixtureOfExperts, packer: _Packer):
        self._gate = module.gate
        self._router = packer.exact(module.gate)
        self._shared = None if module.shared_experts is None else _SwiGLU(module.shared_experts, packer)
        self._whole, self._experts = None, []
        experts = module.experts
        if isinstance(experts, Experts) and experts.gate_proj.device.type == "cpu":
            for gate, up, down in zip(experts.gate_proj, experts.up_proj, experts.down_proj, strict=True):
                self._experts.append(_Expert(gate, up, down, lambda weight: packer.weight(weight, None, packer.kind)))
            experts.gate_proj = experts.up_proj = experts.down_proj = None
        else:
            self._whole = experts
            packer.nbytes += sum(weight.nbytes for weight in experts.parameters())
        on_gpu = self._whole is not None and isinstance(experts, Experts)
        self._dtype = experts.gate_proj.dtype if on_gpu else torch.bfloat16
        self.captured = on_gpu and experts.can_group(experts.gate_proj[0])
        """Whether it never waits for a GPU, as one call multiplies for all experts."""

    def __call__(self, x_NE: Tensor) -> Tensor:
        routing = self._gate.route(self._scores(self._router(x_NE)))
        if self._whole is not None:
            y_NKE = self._whole(x_NE.to(self._dtype), routing.experts).float()
        else:
            y_NKE = x_NE.new_empty(*routing.experts.shape, x_NE.shape[-1])
            for expert in routing.experts.unique().tolist():
                rows, places = (routing.experts == expert).nonzero(as_tuple=True)
                y_NKE[rows, places] = self._experts[expert](x_NE[rows])
        # In the order of the token's choice, whatever else is in the batch.
        y_NE = torch.zeros_like(x_NE) if self._shared is None else self._shared(x_NE)
        for place, weight in enumerate(routing.weights.unbind(1)):
            y_NE += y_NKE[:, place] * weight[:, None]
        return y_NE

    def _scores(self, logits_SN: Tensor) -> Tensor:
        """The router's, with NumPy's exponential: PyTorch's differs by where in a tensor a number lies, and the choice
        of an expert would depend on the company."""
        if logits_SN.device.type != "cpu":
            return logits_SN.softmax(-1) if self._gate.e_score_correction_bias is None else logits_SN.sigmoid()
        logits = logits_SN.numpy()
        if self._gate.e_score_correction_bias is not None:
            return torch.from_numpy(1 / (1 + np.exp(-logits)))
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        return torch.from_numpy(scores / scores.sum(-1, keepdims=True))
