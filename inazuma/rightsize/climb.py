"""Climbing one rung: tune on validation, answer calibration and test, measure, and leave a folder that is whole."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inazuma.errors import RunError, UserError
from inazuma.evaluate.outcome import SAMPLES, Sample, item_hash
from inazuma.files import PARTIAL, atomic_folder, write_json
from inazuma.rightsize.energy import Joules
from inazuma.rightsize.measure import measure
from inazuma.rightsize.predictor import Answer, Predictor
from inazuma.rightsize.rungs import Climb
from inazuma.rightsize.scoring import score
from inazuma.rightsize.splits import Splits
from inazuma.rightsize.table import Example
from inazuma.rightsize.task import Task
from inazuma.runs.lines import encode_line

FACTS, SERVICE = "facts.json", "service.jsonl"
JUDGED = ("calibration", "test")


def climb(name: str, task: Task, splits: Splits, plan: Climb, out: Path) -> None:
    """Climbs a rung into `out/rungs/name`, which appears when all is done.

    It then holds `samples.jsonl` (answers to calibration and test), `service.jsonl` (milliseconds of single answers),
    `facts.json` (tuning, times, memory, tokens) and `model/`.

    Raises:
        RunError: no trial gave a model.
    """
    validation = splits["validation"][: plan.most_validated]
    trials, best, best_score = [], None, -1.0
    with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as work, plan.open:
        for number, choice in enumerate(plan.choices[: task.trials]):
            began = time.perf_counter()
            try:
                predictor = plan.fit(choice, Path(work) / str(number))
                reached = quality(task, predictor, validation)
            except UserError:
                raise
            except ValueError as error:
                # scikit-learn raises these for a configuration that fits no data, such as one without any word.
                trials.append({"choice": choice, "error": " ".join(str(error).split())})
                continue
            trials.append({"choice": choice, "validation": reached, "seconds": time.perf_counter() - began})
            # Of equal ones the first: the order of the search space decides, not rounding.
            if reached > best_score:
                best, best_score = predictor, reached
        if best is None:
            raise RunError(f"{name}: no configuration could be trained ({trials[0]['error']})")
        answers = {split: best.answer([e.text for e in splits[split]]) for split in JUDGED}
        with atomic_folder(out / "rungs" / name) as folder:
            (folder / "model").mkdir()
            best.save(folder / "model")
            write_samples(folder, task, splits, answers)
            measured = _measured(best, splits["test"], answers["test"], folder, Path(work))
            write_service(folder, measured["service_ms"])
            write_json(folder / FACTS, facts(task, splits, folder, trials, answers["test"], measured))


def _measured(
    predictor: Predictor, test: Sequence[Example], answers: Sequence[Answer], folder: Path, work: Path
) -> dict[str, Any]:
    """What one answer takes: as it was noted with each answer, or else measured in a process of its own."""
    noted = [answer.milliseconds for answer in answers if answer.milliseconds is not None]
    if noted:
        return {"service_ms": noted, "joules": _mean([answer.joules for answer in answers]), **predictor.facts()}
    return measure(folder / "model", [example.text for example in test], work / "measure")


def _mean(drawn: Sequence[Joules | None]) -> Joules:
    """Of each counter the mean of what single answers drew; no counter at all where some answer has none."""
    if any(one is None for one in drawn):
        return {}
    columns = {name: [one[name] for one in drawn] for name in drawn[0]}
    return {name: None if None in column else sum(column) / len(column) for name, column in columns.items()}


def quality(task: Task, predictor: Predictor, examples: Sequence[Example]) -> float:
    """The mean score of a predictor's answers."""
    scores = item_scores(task, predictor, examples)
    return sum(scores) / len(scores)


def item_scores(task: Task, predictor: Predictor, examples: Sequence[Example]) -> list[float]:
    """The score of each of a predictor's answers."""
    answers = predictor.answer([example.text for example in examples])
    return [score(task, answer.text, e.target) for answer, e in zip(answers, examples, strict=True)]


def write_samples(folder: Path, task: Task, splits: Splits, answers: dict[str, list[Answer]]) -> None:
    """A line for each item of calibration and test, in the order of the rows: the evidence of every figure."""
    with open(folder / SAMPLES, "wb") as handle:
        for split, given in answers.items():
            for example, answer in zip(splits[split], given, strict=True):
                handle.write(
                    encode_line(sample(task, split, example, answer).record() | {"confidence": answer.confidence})
                )


def sample(task: Task, split: str, example: Example, answer: Answer) -> Sample:
    reached = score(task, answer.text, example.target)
    outcome = "no_answer" if answer.text is None else "correct" if reached == 1.0 else "wrong"
    if answer.stop_reason == "length" and outcome != "correct":
        outcome = "truncated"
    return Sample(
        task=split,
        item=item_hash(split, example.text, example.target),
        id=str(example.row),
        cluster=example.group,
        outcome=outcome,
        score=reached,
        prompt=example.text,
        target=example.target,
        answer=answer.text,
        extracted=answer.text,
        stop_reason=answer.stop_reason,
        prompt_tokens=answer.input_tokens or None,
        generated_tokens=answer.output_tokens or None,
        max_tokens=None,
        prompt_tokens_dropped=None,
        min_answer_tokens=None,
        chance=None,
        seed=task.seed,
        batch_size=None,
        error=None,
    )


def write_service(folder: Path, service_ms: Sequence[float]) -> None:
    with open(folder / SERVICE, "wb") as handle:
        handle.writelines(encode_line({"service_ms": x}) for x in service_ms)


def facts(
    task: Task,
    splits: Splits,
    folder: Path,
    trials: list[dict[str, Any]],
    answers: Sequence[Answer],
    measured: dict[str, Any],
) -> dict[str, Any]:
    """What the cost is reckoned with; energy without a counter is an estimate, and says so."""
    gpu = measured.get("gpu", "")
    answering = sum(measured["service_ms"]) / len(measured["service_ms"]) / 1000
    estimates = {"processor": (measured.get("cpu_seconds") or answering) * task.costs.watts}
    if gpu:
        estimates["gpu"] = answering * task.costs.gpu_watts
    drawn = {name: measured["joules"].get(name) for name in estimates}
    known = [name for name, joules in drawn.items() if joules is not None]
    return {
        "hosted": measured.get("hosted", True),
        "trials": trials,
        "training_seconds": sum(trial.get("seconds", 0.0) for trial in trials),
        "labels": measured.get("labels", sum(len(splits[s]) for s in ("train", "validation", "calibration"))),
        "cold_start_s": measured.get("cold_start_s", 0.0),
        "memory_mb": measured.get("memory_mb", 0.0),
        "disk_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        "gpu": gpu,
        "gpu_memory_mb": measured.get("gpu_memory_mb", 0.0),
        "joules": sum(drawn[name] if name in known else estimate for name, estimate in estimates.items()),
        "energy": "estimated" if not known else "counted" if len(known) == len(drawn) else "estimated in part",
        "calls": len(measured["service_ms"]),
        "input_tokens": sum(answer.input_tokens for answer in answers) / len(answers),
        "output_tokens": sum(answer.output_tokens for answer in answers) / len(answers),
    }


def copy_model(folder: Path, destination: Path) -> None:
    """The winner's model, where people look for it; an earlier one is replaced."""
    if destination.exists():
        shutil.rmtree(destination)
    shutil.copytree(folder / "model", destination)
