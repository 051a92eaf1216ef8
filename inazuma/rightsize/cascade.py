"""A cascade: a small rung answers, and what it is unsure of goes on to a large one (Chen, Zaharia and Zou, FrugalGPT,
arXiv 2305.05176). The threshold is chosen on calibration items; the test items only judge it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import atomic_folder, read_json, write_json
from inazuma.rightsize.climb import FACTS, JUDGED, SERVICE, write_service
from inazuma.rightsize.predictor import RUNG, Answer, Predictor, load, write_kind
from inazuma.rightsize.task import Task
from inazuma.runs.lines import encode_line, read_lines


class Cascade:
    """Answers as `small` does where it is at least `threshold` sure, else as `large` does."""

    def __init__(self, small: Predictor, large: Predictor, threshold: float):
        self.small, self.large, self.threshold = small, large, threshold

    def answer(self, texts: Sequence[str]) -> list[Answer]:
        answers = self.small.answer(texts)
        unsure = [i for i, answer in enumerate(answers) if answer.confidence < self.threshold]
        if unsure:
            for i, answer in zip(unsure, self.large.answer([texts[i] for i in unsure]), strict=True):
                answers[i] = answer
        return answers

    @classmethod
    def load(cls, folder: Path) -> Cascade:
        return cls(load(folder / "small"), load(folder / "large"), read_json(folder / RUNG)["threshold"])


def best_threshold(
    confidence: np.ndarray, small: np.ndarray, large: np.ndarray, margin: float
) -> tuple[float, float, float]:
    """(threshold, quality, share passed on) of calibration items with the small rung's confidence and both's scores.

    Of all thresholds, the one that passes on the fewest items with a quality within half the margin of the best
    threshold's; calibration items are few, so that the last thousandth of quality is noise.
    """
    thresholds = [0.0, *np.unique(confidence).tolist(), 2.0]
    reached = [
        (float(np.where(confidence < t, large, small).mean()), float((confidence < t).mean()), t) for t in thresholds
    ]
    top = max(quality for quality, _, _ in reached)
    share, threshold, quality = min((s, t, q) for q, s, t in reached if q >= top - margin / 2)
    return threshold, quality, share


def write_cascade(task: Task, out: Path, names: Sequence[str]) -> None:
    """Makes the rung of two others' recorded answers: the best on calibration, and the best of those faster than it."""
    rungs = {name: _read(out / "rungs" / name) for name in names if name != "majority"}
    quality = {name: float(rung["calibration"]["score"].mean()) for name, rung in rungs.items()}
    speed = {name: float(rung["service"].mean()) for name, rung in rungs.items()}
    large = max(rungs, key=lambda name: quality[name])
    faster = [name for name in rungs if name != large and speed[name] < speed[large]]
    if not faster:  # nothing is faster than the best: the next best goes first all the same
        faster = [name for name in rungs if name != large]
    small = max(faster, key=lambda name: quality[name])
    a, b = rungs[small], rungs[large]
    threshold, reached, share = best_threshold(
        a["calibration"]["confidence"], a["calibration"]["score"], b["calibration"]["score"], task.margin
    )
    passed = a["test"]["confidence"] < threshold
    n = len(passed)
    calls = min(len(a["service"]), len(b["service"]))
    service = [
        float(a["service"][i] + (b["service"][i] if passed[i % n] else 0.0)) for i in range(calls)
    ]  # call i answered item i % n in both
    with atomic_folder(out / "rungs" / "cascade") as folder:
        with open(folder / SAMPLES, "wb") as handle:
            for split in JUDGED:
                unsure = a[split]["confidence"] < threshold
                for first, second, on in zip(a[split]["lines"], b[split]["lines"], unsure, strict=True):
                    handle.write(encode_line(second if on else first))
        write_service(folder, service)
        (folder / "model").mkdir()
        write_kind(folder / "model", "cascade", threshold=threshold, small=small, large=large)
        for part, name in (("small", small), ("large", large)):
            shutil.copytree(out / "rungs" / name / "model", folder / "model" / part)
        write_json(folder / FACTS, _facts(a["facts"], b["facts"], float(passed.mean()), small, large, reached, share))


def _read(folder: Path) -> dict[str, Any]:
    lines = list(read_lines(folder / SAMPLES))
    found: dict[str, Any] = {"facts": read_json(folder / FACTS)}
    found["service"] = np.array([line["service_ms"] for line in read_lines(folder / SERVICE)])
    for split in JUDGED:
        here = [line for line in lines if line["task"] == split]
        found[split] = {
            "lines": here,
            "score": np.array([line["score"] for line in here]),
            "confidence": np.array([line["confidence"] for line in here]),
        }
    return found


def _facts(
    a: dict[str, Any], b: dict[str, Any], passed: float, small: str, large: str, reached: float, share: float
) -> dict[str, Any]:
    """Both are paid for: what is passed on costs the small rung's work as well."""
    both = "training_seconds", "cold_start_s", "memory_mb", "gpu_memory_mb", "disk_mb"
    facts = {name: a[name] + b[name] for name in both}
    facts |= {name: a[name] + passed * b[name] for name in ("joules", "input_tokens", "output_tokens")}
    return facts | {
        "hosted": a["hosted"] and b["hosted"],
        "gpu": a["gpu"] or b["gpu"],
        "trials": [
            {"choice": {"small": small, "large": large}, "calibration": reached, "passed_on": share, "seconds": 0.0}
        ],
        "labels": max(a["labels"], b["labels"]),
        "energy": a["energy"] if a["energy"] == b["energy"] else "estimated in part",
        "calls": min(a["calls"], b["calls"]),
        "passed_on": passed,
    }
