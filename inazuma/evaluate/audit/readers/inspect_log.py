"""Inspect: `.eval` and `.json` logs, read with inspect-ai's own reader (`pip install 'inazuma[audit]'`)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inazuma.errors import UserError, needs_extra
from inazuma.evaluate.audit.files import number, text, whole
from inazuma.evaluate.audit.log import Log, Sample, Score, Stop, Task

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

_KNOWN = 2
"""The version of the log's layout that inspect-ai 0.3 writes."""
_STOPS: dict[str, Stop] = {
    "stop": "end",
    "tool_calls": "end",
    "max_tokens": "length",
    "model_length": "context",
    "content_filter": "filter",
}
_VALUES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def claims(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.iterdir()) if path.is_file() and claims_file(path))


def claims_file(path: Path) -> Path | None:
    if path.suffix == ".eval":
        return path
    if path.suffix == ".json":
        with open(path, "rb") as handle:
            head = handle.read(4096)
        # inspect-ai writes the version first, then status and `eval`.
        if b'"version"' in head and b'"eval"' in head and b'"status"' in head:
            return path
    return None


def read(path: Path) -> Log:
    """One Inspect log; a `UserError` when it is cut off, damaged or of a version that is not known."""
    needs_extra("audit", "inspect_ai")
    _check_version(path)
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(path), resolve_attachments=True)
    except Exception as error:  # whatever a damaged file makes pydantic, zipfile and ijson raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path}: inspect-ai cannot read this log ({lines[0]})") from None
    if log.version != _KNOWN:
        raise UserError(f"{path}: layout version {log.version!r} of Inspect; this reader knows {_KNOWN}")
    return _log(path, log)


def _check_version(path: Path) -> None:
    """Of a JSON log, so that a damaged line has its number; how a zip is compressed is left to Inspect."""
    if path.suffix == ".eval":
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: cut off or damaged (no zip archive, or its end is missing)")
        return
    try:
        version = json.loads(path.read_text(encoding="utf-8")).get("version")
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: cut off or damaged ({error.msg})") from None
    if version != _KNOWN:
        raise UserError(f"{path}: layout version {version!r} of Inspect; this reader knows {_KNOWN}")


def _log(path: Path, log: EvalLog) -> Log:
    config = log.plan.config.merge(log.eval.model_generate_config)
    results = log.results
    scorers = log.eval.scorers or []
    judged = next((s for s in scorers if "model_graded" in s.name), None)
    judge = None
    if judged is not None:
        # Without a model of its own, a model-graded scorer asks the model under test.
        named = (judged.options or {}).get("model")
        judge = named if isinstance(named, str) else str(log.eval.model)
    samples = tuple(_sample(sample, config.max_tokens) for sample in log.samples or [])
    scores = tuple(_scores(results.scores)) if results else ()
    names = ", ".join(s.name for s in scorers)
    return Log(
        path,
        "inspect",
        log.eval.packages.get("inspect_ai"),
        str(log.eval.model),
        (Task(log.eval.task, samples, scores, scorer=names or None, judge=judge),),
        temperature=config.temperature,
        seed=config.seed,
        batch_size=config.max_connections,
        status=log.status,
        settings=log.eval.task_args,
    )


def _scores(scores: list[Any]) -> Iterator[Score]:
    for score in scores:
        values = {name: metric.value for name, metric in score.metrics.items()}
        stderr = next((number(value) for name, value in values.items() if name.startswith("stderr")), None)
        interval = None
        if "ci_lower" in values and "ci_upper" in values:
            interval = (float(values["ci_lower"]), float(values["ci_upper"]))
        for name, value in values.items():
            if not name.startswith(("stderr", "std", "var", "ci", "bootstrap_stderr")):
                yield Score(name, float(value), stderr, interval, whole(score.scored_samples))


def _sample(sample: EvalSample, limit: int | None) -> Sample:
    output = sample.output
    score = next(iter((sample.scores or {}).values()), None)
    value = None
    if score is not None:
        value = _VALUES.get(score.value) if isinstance(score.value, str) else number(score.value)
    metadata = sample.metadata or {}
    choices = tuple(sample.choices) if sample.choices else None
    target = text(sample.target)
    gold = ord(target) - ord("A") if choices and target and len(target) == 1 and target.isupper() else None
    prompt = sample.input if isinstance(sample.input, str) else "\n".join(str(m.text) for m in sample.input)
    stop = output.stop_reason if output.choices else None
    usage = output.usage
    return Sample(
        item=str(sample.id),
        score=value,
        prompt=prompt,
        question=prompt,
        target=target,
        answer=output.completion if output.choices else None,
        extracted=score.answer if score is not None else None,
        choices=choices,
        gold=gold,
        cluster=text(metadata.get("cluster") or metadata.get("cluster_id") or metadata.get("group")),
        repeat=sample.epoch - 1,
        template=text(metadata.get("template")),
        stop=None if stop is None else _STOPS.get(stop, "unknown"),
        prompt_tokens=usage.input_tokens if usage else None,
        generated_tokens=usage.output_tokens if usage else None,
        max_tokens=limit,
        min_answer_tokens=whole(metadata.get("min_answer_tokens")),
        chance=1 / len(choices) if choices else number(metadata.get("chance")),
        error=sample.error.message if sample.error else None,
        witness=metadata.get("witness") if isinstance(metadata.get("witness"), bool) else None,
    )
