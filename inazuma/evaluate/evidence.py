"""Which figures an evaluation reports, and how each follows from the records in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inazuma.evaluate.outcome import OUTCOMES, SAMPLES, Sample
from inazuma.runs.scores import ANSWERED, COMPLETED

BOOTSTRAP_SEED = 0


def figure_name(task: str) -> str:
    """A task's name as a part of a dotted one."""
    return task.replace(".", "_")


def records_of(folder: Path) -> dict[str, str]:
    """The record of documents of each task that has one, by the task's name."""
    found = sorted((Path(folder) / "documents").glob("*.jsonl"))
    return {path.stem: path.relative_to(folder).as_posix() for path in found}


def evidence_of(samples: Sequence[Sample], documents: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """`tasks.NAME.…` of the samples and `bits_per_byte.NAME.…` of the documents."""
    evidence: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(sample.task for sample in samples):
        mine = [sample for sample in samples if sample.task == task]
        evidence |= _task_evidence(task, mine)
    for task, record in documents.items():
        name = f"bits_per_byte.{figure_name(task)}"
        evidence[f"{name}.value"] = {"formula": "bits_per_byte", "record": record}
        evidence[f"{name}.interval"] = {"formula": "bootstrap_interval", "record": record, "seed": BOOTSTRAP_SEED}
        evidence[f"{name}.documents"] = {"formula": "count", "record": record, "column": "document"}
        for column in ("bytes", "tokens"):
            evidence[f"{name}.{column}"] = {"formula": "sum", "record": record, "column": column}
    return evidence


def _task_evidence(task: str, samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    name, of = f"tasks.{figure_name(task)}", {"record": SAMPLES, "task": task}
    evidence: dict[str, dict[str, Any]] = {}
    if any(sample.outcome in ANSWERED for sample in samples):
        for part in ("as_scored", "completed", "worst", "best"):
            if part != "completed" or any(sample.outcome in COMPLETED for sample in samples):
                evidence[f"{name}.{part}"] = {"formula": "sample_score", **of, "part": part}
        evidence[f"{name}.interval"] = {"formula": "sample_interval", **of}
        evidence[f"{name}.clusters"] = {"formula": "sample_clusters", **of}
        evidence[f"{name}.minimum_detectable_effect"] = {"formula": "sample_mde", **of}
        if any(sample.chance is not None and sample.outcome in ANSWERED for sample in samples):
            evidence[f"{name}.chance"] = {"formula": "sample_mean", **of, "column": "chance"}
    evidence[f"{name}.n"] = {"formula": "sample_count", **of}
    for outcome in OUTCOMES:
        evidence[f"{name}.outcomes.{outcome}"] = {"formula": "sample_count", **of, "outcome": outcome}
    return evidence
