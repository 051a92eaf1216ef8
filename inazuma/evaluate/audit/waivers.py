"""Waivers: findings that were looked at and accepted, with the reason, in `waivers.yaml` beside what is audited.

    - rule: V10
      task: smoke_test
      reason: shows that the tool runs; no figure of it is published
    - rule: V05
      items: ["17", "203"]
      reason: checked by hand, the keys are right

A waiver without `task` and `items` covers every finding of its rule. One with `items` covers a finding only when it
names all of its items. Waivers, used and unused, are part of every output.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from inazuma import config
from inazuma.errors import UserError

WAIVERS = "waivers.yaml"


@dataclass(frozen=True)
class Waiver:
    rule: str
    reason: str
    task: str | None = None
    items: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("a waiver needs a reason")

    def covers(self, rule: str, item: str, items: tuple[str, ...]) -> bool:
        """Whether it speaks of this finding."""
        if rule != self.rule or (self.task is not None and item != self.task and not item.endswith(f": {self.task}")):
            return False
        return not self.items or (bool(items) and set(items) <= set(self.items))


def read_waivers(path: Path) -> list[Waiver]:
    """The waivers of a file; a `UserError` names the file and the entry of a mistake."""
    try:
        entries: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of waivers")
    return [config.from_dict(Waiver, entry, where=f"{path}: waiver {at}") for at, entry in enumerate(entries, start=1)]
