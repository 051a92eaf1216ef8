"""This project's training runs, and which runs a ledger saw start: what rules on training and on selection look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from inazuma.evaluate.audit.files import number, strict_lines, whole
from inazuma.evaluate.audit.log import TrainingRun
from inazuma.runs import check_ledger
from inazuma.runs.ledger import LEDGER
from inazuma.runs.run import MANIFEST, METRICS, Run


def read_all(path: Path) -> Iterator[TrainingRun]:
    """The training runs at or below `path`: run folders whose metrics hold training losses."""
    for manifest in sorted([path / MANIFEST, *path.rglob(f"*/{MANIFEST}")]):
        folder = manifest.parent
        if not manifest.is_file() or not (folder / METRICS).is_file() or (folder / METRICS).stat().st_size == 0:
            continue
        losses: dict[int, float] = {}
        for _, line in strict_lines(folder / METRICS):
            step, loss = whole(line.get("step")), number(line.get("loss"))
            if line.get("kind") == "train" and step is not None and loss is not None:
                losses[step] = loss
        if losses:
            yield TrainingRun(folder, Run.open(folder).manifest["config"], losses)


def started(path: Path, logs: Sequence[Path]) -> tuple[str, ...]:
    """The runs that the ledgers beside the logs saw start, crashed and aborted ones included."""
    folders = {log.resolve().parent for log in logs}
    if path.is_dir():
        folders |= {ledger.resolve().parent for ledger in path.rglob(LEDGER)}
    names = []
    for folder in sorted(folders):
        if (folder / LEDGER).is_file():
            lines = check_ledger(folder / LEDGER)
            names += [str(folder / str(line["run"])) for line in lines if line.get("event") == "started"]
    return tuple(names)
