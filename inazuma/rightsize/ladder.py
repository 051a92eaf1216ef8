"""The whole climb: from a labelled file to a verdict, in a run folder that goes on after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inazuma import config
from inazuma.errors import UserError
from inazuma.evaluate.outcome import SAMPLES
from inazuma.files import PARTIAL, read_json, sha256, write_json
from inazuma.rightsize.audited import write_audit, write_study
from inazuma.rightsize.checks import findings, overview
from inazuma.rightsize.climb import FACTS, SERVICE, climb, copy_model
from inazuma.rightsize.curves import CURVE, has_curve, learning_curve
from inazuma.rightsize.report import write_report
from inazuma.rightsize.rungs import obstacle, prepare
from inazuma.rightsize.splits import Finding, Splits, make_splits
from inazuma.rightsize.table import Counts, read_examples
from inazuma.rightsize.task import RUNGS, Task
from inazuma.runs import Run, produce
from inazuma.runs.formulas import Figures
from inazuma.runs.lines import read_lines
from inazuma.runs.load import greatest_load
from inazuma.runs.scores import sample_interval

LADDER, DATA = "ladder.json", "data.json"
_LEARNING = ("distilled", "cascade")
"""Rungs made of others: climbed after them, whatever their size."""
Say = Callable[[str], None]


def rightsize(
    task: Task, out: Path, *, command: Sequence[str], force: bool = False, resume: bool = False, say: Say = print
) -> dict[str, Any]:
    """Climbs the ladder into the run folder `out`; returns the figures of its result.json.

    Raises:
        UserError: the task or its data cannot be used, or `out` exists (without `force` or `resume`).
        RunError: a rung failed; what was climbed before it stays, and `resume` goes on from there.
    """
    examples, counts = read_examples(task)
    splits = make_splits(task, examples)
    run = _run(task, Path(out), command=command, force=force, resume=resume)
    try:
        _look(task, counts, splits, run.path, say)
        write_study(splits, run.path)
        names, skipped = _climb_all(task, splits, run.path, say)
        say("learning curves: again on fewer labels")
        for name in filter(has_curve, names):
            learning_curve(task, splits, run.path, name)
        result = _judge(task, run.path, names, skipped)
        for finding in write_audit(run.path)["findings"]:
            say(f"audit: {finding['rule']} {finding['title']}: {finding['item']}: {finding['evidence']}")
        write_report(run.path)
        run.finish("finished")
        return result
    except BaseException as error:
        run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def _run(task: Task, out: Path, *, command: Sequence[str], force: bool, resume: bool) -> Run:
    """A new run, or the one at `out` if it was of the same task and data."""
    settings = config.to_dict(task)
    inputs = {str(task.data): sha256(task.data)}
    if not resume:
        run = Run.create(out, command=command, config=settings, seeds={"seed": task.seed}, inputs=inputs, force=force)
        (out / "rungs").mkdir()
        return run
    run = Run.open(out)
    if run.manifest["status"] == "finished":
        raise UserError(f"{out}: this run is finished; nothing is left to resume")
    if run.manifest["config"] != settings:
        changed = [k for k in settings if run.manifest["config"].get(k) != settings[k]]
        raise UserError(f"{out}: began with another task ({', '.join(changed)}); start a new run for it")
    if run.manifest["inputs"] != inputs:
        raise UserError(f"{out}: {task.data} has changed since this run began; start a new run for it")
    for left in out.rglob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    (out / "rungs").mkdir(exist_ok=True)
    run.resumed(rungs=sorted(path.name for path in (out / "rungs").iterdir()))
    return run


def _look(task: Task, counts: Counts, splits: Splits, out: Path, say: Say) -> None:
    """What the data are and whether they can answer at all: said before anything is trained."""
    facts = overview(task, counts, splits)
    found: list[Finding] = findings(task, counts, splits)
    write_json(out / DATA, {"overview": facts, "findings": [one._asdict() for one in found]})
    shares = ", ".join(f"{count} {name}" for name, count in facts["splits"].items())
    say(f"{facts['kept']} examples ({shares})" + (f", {facts['classes']} labels" if facts["classes"] else ""))
    for one in found:
        say(f"{one.kind}: {one.message}")
    say(
        f"so many test items show a difference of {100 * facts['minimum_detectable']:.1f} points with 80 % probability "
        f"(where two rungs differ on every tenth item); the margin is {100 * task.margin:.1f}, which takes about "
        f"{facts['enough_for_margin']}"
    )


def _climb_all(task: Task, splits: Splits, out: Path, say: Say) -> tuple[list[str], dict[str, str]]:
    """Climbs what is to be climbed and is not there yet. Returns the rungs, smallest first, and why others are not."""
    done: dict[str, float] = {}
    skipped: dict[str, str] = {}
    wanted = [name for name in RUNGS if name in task.rungs]
    for name in sorted(wanted, key=lambda name: name in _LEARNING):
        folder = out / "rungs" / name
        enough = _enough(task, out, list(done)) if task.stop_early and not folder.exists() else None
        reason = obstacle(name, task, done) or (enough and f"not needed: {enough}")
        if reason:
            skipped[name] = reason
            say(f"{name}: skipped, {reason}")
            continue
        if not folder.exists():
            say(f"{name}: climbing")
            if name == "cascade":
                from inazuma.rightsize.cascade import write_cascade

                write_cascade(task, out, sorted(done, key=RUNGS.index))
            else:
                climb(name, task, splits, prepare(name, task, splits, out, _teacher(done, out)), out)
        done[name] = max(trial.get("validation", 0.0) for trial in read_json(folder / FACTS)["trials"])
        scores = _scores(out, name)
        say(f"{name}: quality {scores.mean():.3f} on {len(scores)} test items")
    return sorted(done, key=RUNGS.index), skipped


def _teacher(done: dict[str, float], out: Path) -> Path | None:
    """The model that did best on validation, of those that may teach."""
    able = {name: reached for name, reached in done.items() if name not in ("majority", "scratch")}
    return out / "rungs" / max(able, key=lambda name: able[name]) / "model" if able else None


def _scores(out: Path, name: str) -> np.ndarray:
    return np.array([x["score"] for x in read_lines(out / "rungs" / name / SAMPLES) if x["task"] == "test"])


def _enough(task: Task, out: Path, done: Sequence[str]) -> str | None:
    """Why no other rung could be better by more than the margin; None while one could."""
    for name in done:
        level = 2 * task.confidence - 1  # the low end of this interval is a one-sided bound at `confidence`
        low, _ = sample_interval(Figures(out, {}), record=f"rungs/{name}/{SAMPLES}", task="test", level=level)
        if low >= 1 - task.margin and name not in _beyond_limits(task, out, [name]):
            return (
                f"{name} is above {1 - task.margin:.3g} with {100 * task.confidence:g} % confidence, and 1 is the most"
            )
    return None


def _beyond_limits(task: Task, out: Path, names: Sequence[str]) -> dict[str, str]:
    """Rungs that break a limit, and how."""
    beyond = {}
    for name in names:
        folder = out / "rungs" / name
        memory = read_json(folder / FACTS)["memory_mb"]
        service = np.array([line["service_ms"] for line in read_lines(folder / SERVICE)])
        if task.limits.memory_mb is not None and memory > task.limits.memory_mb:
            beyond[name] = f"needs {memory:.0f} MB, over the limit of {task.limits.memory_mb:g}"
        elif task.limits.latency_ms is not None and greatest_load(service, task.limits.latency_ms) <= 0:
            beyond[name] = f"its 99th percentile is over {task.limits.latency_ms:g} ms without any load"
    return beyond


def _judge(task: Task, out: Path, names: list[str], skipped: dict[str, str]) -> dict[str, Any]:
    """Writes result.json with its evidence, and the chosen model."""
    beyond = _beyond_limits(task, out, names)
    if len(beyond) == len(names):
        raise UserError("no rung keeps to the limits: " + "; ".join(f"{name} {why}" for name, why in beyond.items()))
    write_json(
        out / LADDER,
        {"names": {str(i): name for i, name in enumerate(names)}, "skipped": skipped, "beyond_limits": beyond},
    )
    # What is only estimated ranks nothing.
    counted = all(read_json(out / "rungs" / name / FACTS)["energy"] == "counted" for name in names)
    ranked = "cost" if counted else "cost_terms.all_but_energy"
    result = produce(out, evidence(task, names, [name for name in names if name not in beyond], ranked))
    copy_model(out / "rungs" / result["verdict"]["rung"], out / "model")
    return result


def evidence(task: Task, names: Sequence[str], eligible: Sequence[str], ranked: str) -> dict[str, dict[str, Any]]:
    """Which formula makes each figure of which record; `ranked` is the figure of a rung that says what it costs where
    rungs are held against each other."""
    records = {name: f"rungs/{name}/{SAMPLES}" for name in names}
    joint = {"records": records, "task": "test"}
    rule = {**joint, "margin": task.margin, "confidence": task.confidence, "eligible": list(eligible)}
    # For extraction the lowest rung looks up names it has seen: rules, which may well be the answer.
    rule["floor"] = "" if task.kind == "extraction" else "majority"
    costs = config.to_dict(task.costs)
    peak = task.costs.requests_per_second * task.costs.peak_factor
    queue = {"peak": peak, "limit_ms": task.limits.latency_ms}
    found: dict[str, dict[str, Any]] = {
        f"verdict.{part}": {"formula": "ladder_verdict", **rule, "part": part}
        for part in ("kind", "rung", "more_labels", "open", "probability", "reason")
    }
    for i, name in enumerate(names):
        record, service, facts = records[name], f"rungs/{name}/{SERVICE}", f"rungs/{name}/{FACTS}"
        here: dict[str, dict[str, Any]] = {
            "name": {"formula": "value", "record": LADDER, "field": f"names.{i}"},
            "quality.value": {"formula": "sample_score", "record": record, "task": "test", "part": "as_scored"},
            "quality.low": {"formula": "quality_bound", "record": record, "task": "test", "end": "low"},
            "quality.high": {"formula": "quality_bound", "record": record, "task": "test", "end": "high"},
            "items": {"formula": "sample_count", "record": record, "task": "test"},
            "no_answer": {"formula": "sample_count", "record": record, "task": "test", "outcome": "no_answer"},
            "truncated": {"formula": "sample_count", "record": record, "task": "test", "outcome": "truncated"},
            "shortfall": {"formula": "ladder_shortfall", **joint, "rung": name, "level": 0.9},
        }
        for label, quantile in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            asked = {"record": service, "quantile": quantile, **queue}
            here[f"latency_ms.{label}"] = {"formula": "latency", **asked}
            here[f"latency_ms.{label}_interval"] = {"formula": "latency_interval", **asked}
        here["measured_calls"] = {"formula": "count", "record": service, "column": "service_ms"}
        here["requests_per_second"] = {"formula": "worker_load", "record": service, "limit_ms": queue["limit_ms"]}
        here["workers"] = {"formula": "workers", "record": service, **queue}
        known = "cold_start_s", "memory_mb", "gpu_memory_mb", "disk_mb", "training_seconds", "joules", "energy"
        for field in (*known, "gpu", "labels"):
            here[field] = {"formula": "value", "record": facts, "field": field}
        priced = {"formula": "thousand_requests", "record": facts, "prices": costs}
        priced["of"] = {"workers": f"rungs.{i}.workers"}
        here["cost"] = priced
        for term in ("machines", "energy", "tokens", "labels", "training"):
            here[f"cost_terms.{term}"] = {**priced, "part": term}
        if name in eligible:
            for part in ("sufficient", "insufficient"):
                here[f"p_{part}"] = {"formula": "ladder_p", **rule, "rung": name, "part": part}
        if has_curve(name):
            curve = f"rungs/{name}/{CURVE}"
            here["learning_curve"] = {"formula": "learning_curve", "record": curve}
            here["curve_seconds"] = {"formula": "sum", "record": curve, "column": "seconds"}
            reached = {"of": [f"rungs.{k}.quality.value" for k in range(len(names))], "margin": task.margin}
            for part in ("labels", "how"):
                asked = {"curve": f"rungs.{i}.learning_curve", **reached, "part": part}
                here[f"labels_to_parity.{part}"] = {"formula": "parity", **asked}
        here["cost_terms.all_but_energy"] = {**priced, "part": "all but energy"}
        prices = {other: f"rungs.{k}.{ranked}" for k, other in enumerate(names)}
        here["on_front"] = {"formula": "ladder_front", **joint, "costs": prices, "rung": name}
        found |= {f"rungs.{i}.{field}": how for field, how in here.items()}
    return found
