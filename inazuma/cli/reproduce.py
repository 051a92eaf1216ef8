"""`inazuma reproduce RUN`: run it again from its manifest, and say how the same it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from inazuma.runs.reproduce import Reproduction

SUMMARY = "run a run again from its manifest and compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, or the id of a claim in the claims file")
    parser.add_argument(
        "--claims", type=Path, default=Path("claims.yaml"), metavar="FILE", help="claims file (default: claims.yaml)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="keep the new run in this folder (default: a temporary one, deleted)"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        metavar="T",
        help="relative difference up to which a figure counts as within tolerance (default: 0.001)",
    )
    parser.add_argument(
        "--fresh-environment",
        action="store_true",
        help="build a virtual environment with the recorded packages and the recorded revision of the code first",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """0 when the new run is bit-identical or within tolerance, 1 when it is different."""
    import tempfile

    from rich.console import Console

    from inazuma.files import check_fresh
    from inazuma.runs.environment import build_environment
    from inazuma.runs.reproduce import reproduce
    from inazuma.runs.run import Run

    path = Path(arguments.run)
    if not path.exists():
        path = _run_of_claim(arguments.run, arguments.claims)
    if arguments.out is not None:
        check_fresh(arguments.out, force=False)
    with tempfile.TemporaryDirectory(prefix="inazuma-reproduce-") as folder:
        python = build_environment(Run.open(path), Path(folder)) if arguments.fresh_environment else None
        out = arguments.out or Path(folder) / "again"
        found = reproduce(path, out, tolerance=arguments.tolerance, python=python)
    if arguments.json:
        import dataclasses
        import json

        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        _print(Console(soft_wrap=True, highlight=False), found)
    return 0 if found.outcome != "different" else 1


def _run_of_claim(name: str, file: Path) -> Path:
    """The run folder that the claim's figures come from."""
    from inazuma.errors import UserError
    from inazuma.runs.claims_file import formulas_of, load_claims

    if not file.is_file():
        raise UserError(f"{name}: no such run folder, and no claims file {file} in which it could be a claim")
    claim = next((claim for claim in load_claims(file).claims if claim.id == name), None)
    if claim is None:
        raise UserError(f"{name}: no such run folder, and no such claim in {file}")
    runs = {how["run"] for how in formulas_of(claim) if "run" in how}
    if len(runs) != 1:
        raise UserError(
            f"{name}: its record was not made by a run of inazuma; make it again with `{claim.command}`, "
            f"then compare with `inazuma verify {file}`"
        )
    return file.parent / runs.pop()


def _print(console: Console, found: Reproduction) -> None:
    for name, result in found.files.items():
        console.print(f"{result:<28} {name}", markup=False)
    for line in found.not_the_same or ("nothing: code, packages and machine are the same",):
        console.print(f"not the same: {line}", markup=False)
    for one in found.off[:20]:
        console.print(f"off: {one.figure}: {one.recorded} recorded, {one.found} now", markup=False)
    if len(found.off) > 20:
        console.print(f"off: and {len(found.off) - 20} more")
    compared = sum(result != "not compared" for result in found.files.values())
    counts = f"{compared} of {len(found.files)} files and {found.figures} figures compared"
    style = "bold red" if found.outcome == "different" else "bold green"
    if found.outcome != "bit-identical":
        counts += f", largest relative difference {found.largest:.3g}, tolerance {found.tolerance:g}"
    console.print(f"{found.outcome} ({counts})", style=style, markup=False)
