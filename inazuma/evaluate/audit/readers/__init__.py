"""Readers: one file a format, each `claims(folder)` its logs and `read`s them into the common structure.

`read_study` looks through a folder, or takes one log file. What it finds and cannot read is a `UserError` that names
file and line; so is a folder in which no reader finds anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from inazuma.errors import UserError
from inazuma.evaluate.audit.declared import read_declared
from inazuma.evaluate.audit.log import Log, Study
from inazuma.evaluate.audit.readers import (
    comparison,
    helm,
    inazuma_run,
    inspect_log,
    lighteval,
    lm_eval,
    rightsize_run,
    training_run,
)
from inazuma.files import PARTIAL

READERS: tuple[ModuleType, ...] = (inazuma_run, rightsize_run, lm_eval, inspect_log, lighteval, helm)


def read_study(path: Path) -> Study:
    """Everything at `path`: a folder (searched to the bottom) or one file that a reader knows.

    Raises `UserError` when there is nothing to read or something cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    logs = tuple(_logs(path))
    training = tuple(training_run.read_all(path)) if path.is_dir() else ()
    if not logs and not training:
        raise UserError(f"{path}: no log of a known format (inazuma, lm-eval, Inspect, lighteval or HELM)")
    declared = read_declared(folder)
    compared = list(comparison.read_all(path)) if path.is_dir() else []
    declared = replace(declared, comparisons=[*declared.comparisons, *compared])
    return Study(path, logs, declared, training, training_run.started(path, [log.path for log in logs]))


def _logs(path: Path) -> Iterator[Log]:
    if path.is_file():
        for reader in READERS:
            if found := reader.claims_file(path):
                yield reader.read(found)
                return
        raise UserError(f"{path}: not a log of a known format (inazuma, lm-eval, Inspect, lighteval or HELM)")
    for folder in [path, *sorted(p for p in path.rglob("*") if p.is_dir() and PARTIAL not in p.as_posix())]:
        for reader in READERS:
            for found in reader.claims(folder):
                yield reader.read(found)
