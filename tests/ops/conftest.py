"""What holds for the operators' tests: each engine in turn, one thread, and every way the reference may cut work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from inazuma.ops import cpu, dispatch, reference, triton
from inazuma.ops.dispatch import engine_for
from tests.ops import cases
from tests.ops.cases import CHUNKS


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and lose much where another program wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=list(cases.PRECISION), autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs each test once for each engine: the one that `auto` picks, for inputs of the dtype that suits it."""
    if request.param == "cpu" and cpu.MISSING is not None:
        pytest.skip(cpu.MISSING)
    if request.param == "triton" and (why := triton.obstacle()) is not None:
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(dispatch, "AUTO", ("reference",))
        if request.param == "triton":
            patch.setattr(dispatch, "engine_for", prefer_triton)
        patch.setattr(cases, "current", cases.PRECISION[request.param])
        yield request.param


def prefer_triton(*tensors: Tensor | None, engine: str = "auto") -> str:
    """What `auto` would answer if it took triton wherever that can run."""
    if engine == "auto" and triton.obstacle(*tensors) is None:
        engine = "triton"
    return engine_for(*tensors, engine=engine)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The reference's chunk sizes are nothing to another engine: there, such a test runs once. Triton's interpreter
    takes seconds for what others do in milliseconds: of its tests, the quick ones of traps are not `slow`."""
    kept, dropped = [], []
    for item in items:
        callspec = getattr(item, "callspec", None)
        parameters = callspec.params if callspec else {}
        engine = parameters.get("engine")
        spare = engine in ("cpu", "triton") and parameters.get("chunks", LAST) != LAST
        (dropped if spare else kept).append(item)
        if engine == "triton" and (item.path.name != "test_traps.py" or any(name in item.name for name in LONG)):
            item.add_marker("slow")
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


LONG = ("any_chunk_size", "packed_documents", "no tile divides", "never_gathered", "primes")
"""Traps that take the interpreter longest, by a part of their names."""
LAST = list(CHUNKS.values())[-1]


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS.keys())
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test once for each entry of `CHUNKS`."""
    for name, value in request.param.items():
        monkeypatch.setattr(reference, name, value)
