"""DeepSeek-V3.2's messages as text: that family publishes its encoding as a program, not as a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def is_for(folder: Path) -> bool:
    """Whether a folder without a chat template is of that family: by its model type and its vocabulary."""
    return False


def encode(messages: Sequence[Mapping], tools: Sequence[Mapping], add_generation_prompt: bool, **options: Any) -> str:
    raise NotImplementedError
