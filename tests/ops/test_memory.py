"""Nothing of size T×S: neither one tensor, nor slabs that are small each but kept until they add up to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inazuma.ops import dense_attention, dsa, index_loss, sparse_attention
from inazuma.ops.triton import tiles
from tests.ops.cases import Inputs, make_inputs

LENGTH = 4096


@pytest.fixture(autouse=True)
def small_slabs_in_large_tiles(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the triton engine: its slab of 256 MiB would hold all of T×S here, and its interpreter takes hours for tiles
    of a GPU's size, seconds for few large ones."""
    if engine == "triton":
        monkeypatch.setattr("inazuma.ops.triton.launch.SLAB_BYTES", 4 << 20)
        monkeypatch.setattr(tiles, "EXACT", tiles.Tiles(512, 512, 8, 1))


class MemoryWatch(TorchDispatchMode):
    """Sees what every operation returns, in the backward pass too, in elements of storage.

    largest: of the biggest single storage; peak: of all those alive at the same time. A view has its base's storage,
    so a broadcast mask costs what it holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self._sizes: dict[StorageWeakRef, int] = {}
        self._total = 0  # of _sizes, of which some may have been freed: counted only when it would be a new peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._see(x)
        if self._total > self.peak:
            self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
            self._total = sum(self._sizes.values())
            self.peak = max(self.peak, self._total)
        return result

    def _see(self, x: Tensor) -> None:
        storage = StorageWeakRef(x.untyped_storage())
        if storage not in self._sizes:
            size = x.untyped_storage().nbytes() // x.element_size()
            self._sizes[storage] = size
            self._total += size
            self.largest = max(self.largest, size)

    def assert_linear(self) -> None:
        """Below T×S in one piece and in total."""
        assert 0 < self.largest < LENGTH**2, f"one tensor of {self.largest / LENGTH**2:.2f} T×S elements"
        assert self.peak < LENGTH**2, f"tensors of {self.peak / LENGTH**2:.2f} T×S elements alive at once"


def long_inputs(**sizes: int) -> Inputs:
    sizes = {"heads": 2, "groups": 1, "width": 2, "index_heads": 2, "index_width": 2, **sizes}
    return make_inputs(60, batch=1, queries=LENGTH, keys=LENGTH, dtype=torch.float32, **sizes).leaves()


def test_dense_attention_and_its_loss() -> None:
    inputs = long_inputs()
    with MemoryWatch() as watch:
        out, lse = dense_attention(*inputs.attention)
        torch.autograd.grad((out, lse), inputs.attention, (torch.ones_like(out), torch.ones_like(lse)))
        loss = index_loss(*inputs.index, inputs.q, inputs.k, lse.detach())
        torch.autograd.grad(loss, inputs.index)
    watch.assert_linear()


def test_sparse_training_step() -> None:
    """Selection, attention and loss, and both graphs alive until the backward pass."""
    inputs = long_inputs()
    with MemoryWatch() as watch:
        result = dsa(*inputs, topk=8, stage="sparse")
        (result.out.sum() + result.loss).backward()
    watch.assert_linear()


@pytest.mark.parametrize(
    "sizes", [{"width": 64}, {"value_width": 64}, {"index_width": 64}], ids=lambda x: next(iter(x))
)
def test_gathered_keys_are_a_bounded_slab_whatever_their_width(sizes: dict[str, int]) -> None:
    """120 tokens of width 64 for each query would be more than T×S elements: it is the keys that must fit, too."""
    inputs = long_inputs(heads=1, index_heads=1, **sizes)
    begin = torch.arange(LENGTH)[:, None] - torch.arange(119, -1, -1)
    indices = begin.clamp(min=-1).int()[None]
    with MemoryWatch() as watch:
        out, lse = sparse_attention(*inputs.attention, indices)
        loss = index_loss(*inputs.index, inputs.q, inputs.k, lse.detach(), indices=indices)
        (out.sum() + loss).backward()
    watch.assert_linear()


def test_the_watch_sees_one_large_tensor_of_the_backward_pass() -> None:
    """A product whose gradient is T×S; the broadcast of its forward pass is a view and costs nothing."""
    x, everywhere = torch.ones(LENGTH, 1, requires_grad=True), torch.ones(()).expand(LENGTH, LENGTH)
    with MemoryWatch() as watch:
        y = x.expand(LENGTH, LENGTH)
        watch.assert_linear()
        torch.autograd.grad(y, x, 2.0 * everywhere)
    with pytest.raises(AssertionError, match="one tensor"):
        watch.assert_linear()


def test_the_watch_sees_small_tensors_that_add_up() -> None:
    with MemoryWatch() as watch:
        kept = [torch.empty(LENGTH // 8, LENGTH) for _ in range(8)]
    assert len(kept) == 8 and watch.largest == LENGTH**2 // 8
    with pytest.raises(AssertionError, match="alive at once"):
        watch.assert_linear()


def test_the_watch_forgets_what_was_freed() -> None:
    with MemoryWatch() as watch:
        for _ in range(20):
            torch.empty(LENGTH // 8, LENGTH)
    watch.assert_linear()
