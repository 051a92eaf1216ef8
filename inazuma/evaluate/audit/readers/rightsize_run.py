"""Runs of `inazuma rightsize`: a log for each rung of the ladder, of its answers to the test split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import required, strict_lines
from inazuma.evaluate.audit.log import Log, Score, Task
from inazuma.evaluate.audit.readers.inazuma_run import check_unedited, sample_of
from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import read_json
from inazuma.runs.run import MANIFEST, Run
from inazuma.runs.verify import RESULT

_JUDGED = "test"
"""The split that figures are of; the others chose settings and thresholds."""


def claims(folder: Path) -> Iterator[Path]:
    """A rung's folder in such a run, if it is one of its ladder: the run itself is audited as all of them."""
    rungs, name = folder.resolve().parent, folder.resolve().name
    ladder = rungs.parent / "ladder.json"
    if rungs.name != "rungs" or not ladder.is_file() or not (rungs.parent / MANIFEST).is_file():
        return
    if name in read_json(ladder).get("names", {}).values():
        yield folder


def claims_file(path: Path) -> Path | None:
    """A rung's samples, where they lie in such a run."""
    return next(claims(path.parent), None) if path.name == SAMPLES else None


def read(folder: Path) -> Log:
    """A rung; a `UserError` says which file of its run was edited after the run ended, by its hash."""
    name = folder.resolve().name
    run = Run.open(folder.resolve().parent.parent)
    check_unedited(run)
    samples = []
    for where, record in strict_lines(folder / SAMPLES):
        if required(record, "task", where) == _JUDGED:
            samples.append(sample_of(record, where))
    generates = any(sample.generated_tokens for sample in samples)
    config = run.manifest["config"]
    return Log(
        folder,
        "inazuma rightsize",
        run.manifest["code"]["version"],
        name,
        (Task(_JUDGED, tuple(samples), _scores(run.path, name), generates, scorer="exact"),),
        seed=config.get("seed"),
        status=run.manifest["status"],
        settings=config,
    )


def _scores(run: Path, name: str) -> tuple[Score, ...]:
    """The quality that result.json reports, with its interval."""
    rungs: list[dict[str, Any]] = read_json(run / RESULT).get("rungs", [])
    for rung in rungs:
        if rung["name"] == name:
            quality = rung["quality"]
            return (Score("quality", quality["value"], None, (quality["low"], quality["high"]), rung["items"]),)
    raise UserError(f"{run / RESULT}: reports no rung {name!r}, which ladder.json names")
