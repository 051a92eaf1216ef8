"""`inazuma presets`, and `inazuma presets NAME --data DATA`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SUMMARY = "list model shapes that a person can train, or print a recipe for one"

CONTEXTS = (1024, 8192, 65536)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="print a recipe for this one, for `inazuma train`")
    parser.add_argument("--data", type=Path, metavar="DATA", help="a folder of `inazuma data build`, for the recipe")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(arguments: argparse.Namespace) -> int:
    from inazuma.model.presets import PRESETS

    if arguments.name is not None:
        print(_recipe(arguments.name, arguments.data), end="")
        return 0
    rows = [_row(name, config) for name, config in PRESETS.items()]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    return 0


def _recipe(name: str, data: Path | None) -> str:
    import yaml

    from inazuma.config import to_dict
    from inazuma.data.shards import Dataset
    from inazuma.errors import UserError
    from inazuma.model.presets import preset
    from inazuma.train.recipe import recipe_for

    if data is None:
        raise UserError(f"presets {name}: pass --data DATA, a folder that `inazuma data build` wrote")
    recipe = recipe_for(preset(name), Dataset.open(data))
    return f"# {name}\n" + yaml.safe_dump(to_dict(recipe), sort_keys=False)


def _row(name: str, config: Any) -> dict[str, Any]:
    from inazuma.model.families import writer
    from inazuma.model.presets import readers
    from inazuma.model.size import cache_numbers, flops, parameters

    size, longest = parameters(config), config.max_position_embeddings
    return {
        "name": name,
        "family": writer(config).model_type,
        "readers": readers(config),
        "parameters": size.total,
        "active": size.active,
        "context": longest,
        # float32 weights, gradients and both moments of AdamW; activations come on top.
        "bytes_to_train": 16 * size.total,
        # bfloat16 weights, and the cache of one text as long as the model reads.
        "bytes_to_run": 2 * size.total + 2 * longest * cache_numbers(config),
        "flops_per_token": {str(context): flops(config, context) for context in CONTEXTS if context <= longest},
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Shapes to train", caption="GFLOP: forward pass of a token that sees so many tokens")
    table.add_column("name", no_wrap=True)
    for column in ("parameters", "active", "to train", "to run", *(f"GFLOP {n // 1024}K" for n in CONTEXTS)):
        table.add_column(column, justify="right")
    table.add_column("saved as")
    table.add_column("read by")
    for row in rows:
        work = (row["flops_per_token"].get(str(context)) for context in CONTEXTS)
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:,.0f} M",
            f"{row['active'] / 1e6:,.0f} M",
            f"{row['bytes_to_train'] / 1e9:,.2f} GB",
            f"{row['bytes_to_run'] / 1e9:,.2f} GB",
            *("" if one is None else f"{one / 1e9:,.2f}" for one in work),
            row["family"],
            ", ".join(row["readers"]) or "inazuma",
        )
    Console().print(table)
