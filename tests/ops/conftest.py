"""How the reference engine may cut its work: every way must give the same."""

from __future__ import annotations

import pytest

from inazuma.ops import reference
from tests.ops.cases import CHUNKS


@pytest.fixture(params=CHUNKS.values(), ids=CHUNKS.keys())
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test once for each entry of `CHUNKS`."""
    for name, value in request.param.items():
        monkeypatch.setattr(reference, name, value)
