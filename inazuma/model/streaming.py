"""A mixture of experts larger than memory: routed experts lie on disk and are read when a token chooses them.

What every token needs is loaded as usual. An expert is read into a slot of a cache that all layers share, which
forgets the expert that was used longest ago; the slots are as many as the memory limit leaves. While a layer works on
the experts that are there, threads read those that are not. The results are those of the model loaded whole, bit for
bit: the same products of the same numbers.
"""

from __future__ import annotations

import functools
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inazuma.errors import UserError
from inazuma.model.checkpoint import check_fit, copies, read_config, weight_files, with_what_is_there
from inazuma.model.disk import Entry, entries
from inazuma.model.moe import MixtureOfExperts, by_expert
from inazuma.model.plan import activation_bytes
from inazuma.model.size import cache_numbers
from inazuma.model.transformer import Transformer, skeleton
from inazuma.runs.surroundings import resident

READERS = 4
"""Threads that read: a solid-state disk is fastest with a few requests at once, and readers only wait."""

LEAST = 2
"""Slots without which nothing runs: one expert is worked on while the next is read."""

MARGIN = 100_000_000
"""Bytes left unused, for what comes to stay within one forward pass: code that oneDNN makes for every new shape of a
product, buffers of the C library. What has come to stay is measured before the next pass."""

Key = tuple[int, int]
"""A layer and an expert of it."""


class Weights(NamedTuple):
    """Of one expert."""

    gate: Tensor
    up: Tensor
    down: Tensor


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass
class Counts:
    """What a model has read so far."""

    used: int = 0
    """Experts that were worked with, once for each layer and forward pass."""
    found: int = 0
    """Those of them that were in memory, or on their way because they had been guessed."""
    guessed: int = 0
    """Experts read because the next layer seemed to need them."""
    bytes_read: int = 0


class ExpertCache:
    """Slots of one expert each, and who is in them."""

    def __init__(self, places: dict[Key, tuple[Entry, Entry, Entry]]):
        self._places = places
        rooms = [sum(entry.room for entry in place) for place in places.values()]
        self.slot_bytes = max(rooms)
        self.itemsize = next(iter(places.values()))[0].dtype.itemsize
        self.slots = LEAST
        self.counts = Counts()
        self._held: OrderedDict[Key, tuple[mmap.mmap, Future[Weights]]] = OrderedDict()  # the first: used longest ago
        self._spare: list[mmap.mmap] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="experts")

    def resize(self, slots: int) -> None:
        """Holds so many experts at most from now on, at least `LEAST`."""
        self.slots = max(slots, LEAST)
        self._spare.clear()
        while len(self._held) > self.slots:
            self._forget(next(iter(self._held)))

    def reset(self) -> None:
        """Forgets all experts, and what was counted."""
        while self._held:
            self._forget(next(iter(self._held)))
        self.counts = Counts()

    @property
    def resident_bytes(self) -> int:
        """Of the slots that were made; at most this much of them is in memory."""
        return (len(self._held) + len(self._spare)) * self.slot_bytes

    def visit(self, layer: int, experts: Sequence[int], guesses: Sequence[Key] = ()) -> Iterator[tuple[int, Weights]]:
        """Each of a layer's `experts` with its weights, which are valid until the next one is asked for.

        First come those that are in memory, while the others are read. Then, as far as there is room, `guesses` are
        read that may be wanted next.
        """
        there = [expert for expert in experts if (layer, expert) in self._held]
        order = there + [expert for expert in experts if (layer, expert) not in self._held]
        waiting = [(layer, expert) for expert in order[len(there) :]]
        waiting += [key for key in guesses if key not in self._held]
        wanted = {(layer, expert) for expert in order}
        kept = {(layer, expert) for expert in there} | {key for key in guesses if key in self._held}
        self.counts.used += len(order)
        self.counts.found += len(there)
        issued = 0
        for place, expert in enumerate(order):
            key = (layer, expert)
            if place >= len(there):
                kept -= set(guesses)  # only what is needed now must not be driven out by what is needed now
            while issued < len(waiting) and self._read(waiting[issued], kept):
                kept.add(waiting[issued])
                self.counts.guessed += waiting[issued] not in wanted
                issued += 1
            yield expert, self._held[key][1].result()
            kept.discard(key)
            self._held.move_to_end(key)

    def _read(self, key: Key, kept: set[Key]) -> bool:
        """Begins to read an expert, if there is a slot that holds none of `kept`."""
        if len(self._held) >= self.slots:
            victim = next((held for held in self._held if held not in kept), None)
            if victim is None:
                return False
            self._spare.append(self._forget(victim))
        slot = self._spare.pop() if self._spare else mmap.mmap(-1, self.slot_bytes)
        self._held[key] = slot, self._readers.submit(self._fill, slot, self._places[key])
        self.counts.bytes_read += sum(entry.nbytes for entry in self._places[key])
        return True

    def _forget(self, key: Key) -> mmap.mmap:
        slot, reading = self._held.pop(key)
        if not reading.cancel():
            reading.result()  # its slot must not be written to any more
        return slot

    @staticmethod
    def _fill(slot: mmap.mmap, place: tuple[Entry, Entry, Entry]) -> Weights:
        tensors, start = [], 0
        for entry in place:
            tensors.append(entry.read_into(slot, start))
            start += entry.room
        return Weights(*tensors)


class StreamedExperts(nn.Module):
    """The routed experts of one layer, on disk; computes what `moe.Experts` does. No gradient passes through it."""

    def __init__(self, cache: ExpertCache, layer: int, experts: int, following: MixtureOfExperts | None):
        super().__init__()
        self.cache, self.layer, self.n = cache, layer, experts
        self.__dict__["following"] = following  # not as an attribute, lest it become a part of this module

    @torch.no_grad()
    def forward(self, x_SE: Tensor, experts_SK: Tensor) -> Tensor:
        """What each token's experts make of it, `[S,K,E]`."""
        guesses = self._guess(x_SE) if experts_SK.numel() <= self.n else []
        return by_expert(x_SE, experts_SK, self.n, lambda x, ends: self._transform(x, ends, guesses))

    def _transform(self, x_PE: Tensor, ends_N: Tensor, guesses: list[Key]) -> Tensor:
        ends = ends_N.tolist()
        starts = [0, *ends[:-1]]
        chosen = [expert for expert in range(self.n) if ends[expert] > starts[expert]]
        y_PE = torch.empty_like(x_PE)
        for expert, (gate, up, down) in self.cache.visit(self.layer, chosen, guesses):
            rows = slice(starts[expert], ends[expert])
            x = x_PE[rows]
            y_PE[rows] = F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
        return y_PE

    def _guess(self, x_SE: Tensor) -> list[Key]:
        """Whom the next layer's router would choose if it saw this input: the residual stream changes slowly."""
        if self.following is None:
            return []
        return [(self.layer + 1, expert) for expert in self.following.gate(x_SE).experts.unique().tolist()]

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        raise UserError("a model whose experts stay on disk cannot be saved; its folder is the checkpoint")


def load_streaming(path: Path | str, memory: int) -> Transformer:
    """Reads a Hugging Face folder on the CPU, its routed experts only when they are needed.

    Args:
        memory: bytes that the whole process may have resident, Python and PyTorch included. What the cache of a text
            and the activations take of it is taken from the experts' slots, at each forward pass.

    Returns:
        the model in evaluation mode, in the type it was saved in; it generates but does not learn.
        `model.expert_cache.counts` says what was read.

    Raises:
        UserError: as `inazuma.load`; a model without routed experts, or quantised; a limit that is too small, with the
            one that is needed. The last may be raised by the model, for a text that is too long for the limit.
    """
    path = Path(path)
    config, hf = read_config(path)
    if config.n_routed_experts is None:
        raise UserError(f"{path}: has no routed experts that could stay on disk; load it whole, or quantised")
    if hf.get("quantization_config") is not None:
        raise UserError(f"{path}: quantised experts are not read from disk yet; load the model whole")
    on_disk: dict[str, Entry] = {}
    for file in weight_files(path):
        on_disk |= entries(file)
    config = with_what_is_there(config, hf, on_disk)
    model = skeleton(config)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in on_disk:
        on_disk.setdefault("lm_head.weight", on_disk["model.embed_tokens.weight"])
    for copy in copies(config):
        on_disk.pop(copy, None)
    check_fit(path, model, on_disk)

    mixtures = {number: layer.mlp for number, layer in enumerate(model.model.layers) if config.has_experts(number)}
    places = {
        (layer, expert): tuple(
            on_disk.pop(f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight") for projection in PROJECTIONS
        )
        for layer in mixtures
        for expert in range(config.n_routed_experts)
    }
    if len(types := {entry.dtype for place in places.values() for entry in place}) > 1:
        raise UserError(
            f"{path}: experts of several types ({', '.join(sorted(map(str, types)))}); load the model whole"
        )
    cache = ExpertCache(places)
    if config.tie_word_embeddings:
        del on_disk["lm_head.weight"]
    limit = Limit(memory, cache, model)
    limit.check(resident() + sum(entry.nbytes for entry in on_disk.values()), tokens=1, cached=1)
    for layer, mixture in mixtures.items():
        mixture.experts = StreamedExperts(cache, layer, config.n_routed_experts, mixtures.get(layer + 1))
    model.load_state_dict({name: entry.read() for name, entry in on_disk.items()}, assign=True, strict=False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.eval().requires_grad_(False)
    model.tokenizer_folder = path if (path / "tokenizer.json").exists() else None
    model.expert_cache = cache
    model.generate([[0]], 2)  # what is first done leaves code and buffers in memory, which belong to what is resident
    limit.base = resident() - cache.resident_bytes
    cache.reset()
    model.read = limit.before(model.read)
    model.memory_limit = limit
    return model


class Limit:
    """Shares the memory out: what is resident for good, a text's cache, activations; the rest is for experts."""

    def __init__(self, memory: int, cache: ExpertCache, model: Transformer):
        self.memory, self.cache, self.config = memory, cache, model.config
        self.token_bytes = cache_numbers(model.config) * cache.itemsize
        self.base = 0
        """Resident before the first text."""

    def before(self, read: Callable) -> Callable:
        """`read`, a model's, which makes room for itself first."""

        @functools.wraps(read)
        def reads(ids: Tensor, **options: Any) -> Any:
            cache = options.get("cache")
            held = (
                (0, 0) if cache is None else (len(cache.lengths) * cache.capacity, len(cache.lengths) * cache.longest)
            )
            self.make_room(ids.numel(), *held)
            return read(ids, **options)

        return reads

    def make_room(self, tokens: int, capacity: int = 0, written: int = 0) -> None:
        """Leaves the experts what a forward pass over so many tokens does not need.

        Args:
            capacity, written: tokens that a cache that will be let go has room for, and those of them that it holds.
        """
        self.base = max(self.base, resident() - self.cache.resident_bytes - written * self.token_bytes)
        self.cache.resize(self.check(self.base, tokens=tokens, cached=capacity))

    def check(self, base: int, *, tokens: int, cached: int) -> int:
        """How many slots fit beside `base` bytes, `tokens` tokens at once and a cache of `cached` tokens.

        Raises:
            UserError: fewer than `LEAST`.
        """
        work = activation_bytes(self.config, tokens, self.cache.itemsize) + cached * self.token_bytes
        needed = base + work + MARGIN
        slots = (self.memory - needed) // self.cache.slot_bytes
        if slots < LEAST:
            least = needed + LEAST * self.cache.slot_bytes
            limit, least, base, work = (round(x / 1e6) for x in (self.memory, least, base, work))
            raise UserError(
                f"memory: {limit} MB are too few, {least} MB are needed: {base} MB are resident for good, {work} MB "
                "are the text's cache and activations, the rest is for two experts and a margin"
            )
        return slots
