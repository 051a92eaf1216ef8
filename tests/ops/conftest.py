"""What holds for the operators' tests: one thread, and every way in which the reference engine may cut its work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inazuma.ops import reference
from tests.ops.cases import CHUNKS


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and lose much where another program wants the core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS.keys())
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test once for each entry of `CHUNKS`."""
    for name, value in request.param.items():
        monkeypatch.setattr(reference, name, value)
