"""What `inazuma compare` wrote: each `comparison.json` states its claims as `study.yaml` would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inazuma.errors import UserError
from inazuma.evaluate.audit.declared import Comparison
from inazuma.evaluate.audit.files import number
from inazuma.files import read_json

COMPARISON = "comparison.json"


def read_all(path: Path) -> Iterator[Comparison]:
    """The comparisons of every `comparison.json` at or below `path`; their differences are B − A, their verdict B's."""
    for file in [path / COMPARISON, *sorted(path.rglob(f"*/{COMPARISON}"))]:
        if not file.is_file():
            continue
        record = read_json(file)
        try:
            a, b, lines = Path(record["a"]).name, Path(record["b"]).name, record["comparisons"]
            yield from (
                Comparison(
                    b,
                    a,
                    line["task"],
                    float(line["difference"]),
                    line["verdict"] if line["verdict"] in ("better", "worse", "equivalent") else "none",
                    "paired",
                    number(line["p_value"]),
                    correction="holm",
                )
                for line in lines
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: not a comparison of `inazuma compare` ({error})") from None
