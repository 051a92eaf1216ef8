"""This project's evaluation runs: `samples.jsonl` beside `manifest.json` and `result.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import number, required, strict_lines, text, whole
from inazuma.evaluate.audit.log import Log, Sample, Score, Stop, Task
from inazuma.evaluate.outcome import OUTCOMES, SAMPLES
from inazuma.files import read_json, sha256
from inazuma.runs.run import MANIFEST, Run
from inazuma.runs.verify import RESULT

_FAMILIES = {
    "single-key-recall": "recall",
    "multi-key-recall": "recall",
    "non-lexical-recall": "non-lexical match",
    "variable-tracking": "tracking",
    "counting": "aggregation",
    "sorting": "order",
}
_STOPS: dict[str, Stop] = {
    "stop": "end",
    "eos": "end",
    "end": "end",
    "length": "length",
    "max_tokens": "length",
    "context": "context",
    "content_filter": "filter",
}


def claims(folder: Path) -> Iterator[Path]:
    if (folder / SAMPLES).is_file() and (folder / MANIFEST).is_file():
        yield folder


def claims_file(path: Path) -> Path | None:
    return next(claims(path.parent), None) if path.name in (SAMPLES, MANIFEST) else None


def read(folder: Path) -> Log:
    """The run in `folder`; a `UserError` says which file was edited after the run ended, by its hash."""
    run = Run.open(folder)
    check_unedited(run)
    samples: dict[str, list[Sample]] = {}
    for where, record in strict_lines(folder / SAMPLES):
        samples.setdefault(str(required(record, "task", where)), []).append(sample_of(record, where))
    # A dot would lead on in a figure's name.
    scores = _scores(folder, {spelling: name for name in samples for spelling in (name, name.replace(".", "_"))})
    config = run.manifest["config"] if isinstance(run.manifest["config"], dict) else {}
    tasks = tuple(
        Task(
            name,
            tuple(of),
            tuple(scores.get(name, ())),
            any(sample.max_tokens is not None or sample.generated_tokens for sample in of),
            family=_family(config, name),
            scorer="exact",
        )
        for name, of in samples.items()
    )
    seeds = run.manifest.get("seeds", {})
    return Log(
        folder,
        "inazuma",
        text(run.manifest.get("code", {}).get("version")) if isinstance(run.manifest.get("code"), dict) else None,
        _model(config.get("model")),
        tasks,
        tokenizer=text(config.get("tokenizer")),
        temperature=number(config.get("temperature")),
        seed=whole(next(iter(seeds.values()), None)) if isinstance(seeds, dict) else None,
        batch_size=whole(config.get("batch_size")),
        status=run.manifest["status"],
        settings=config,
    )


def check_unedited(run: Run) -> None:
    """Every artefact that the manifest names still has the hash that it had when the run ended."""
    for name, recorded in run.manifest.get("artefacts", {}).items():
        path = run.path / name
        if not path.is_file():
            raise UserError(f"{path}: the manifest names this file with SHA-256 {recorded}, and it is gone")
        if (found := sha256(path)) != recorded:
            raise UserError(f"{path}: edited after the run ended: its SHA-256 is {found}, the manifest says {recorded}")


def _family(config: dict[str, Any], name: str) -> str | None:
    """The family of a long-context task: as configured, or by the name of this project's own (`counting-8K`)."""
    families = config.get("families")
    if isinstance(families, dict) and name in families:
        return text(families[name])
    own, _, length = name.rpartition("-")
    return _FAMILIES.get(own) if length[:1].isdigit() else None


def sample_of(record: dict[str, Any], where: str) -> Sample:
    outcome = required(record, "outcome", where)
    if outcome not in OUTCOMES:
        raise UserError(f"{where}: unknown outcome {outcome!r}; known are {', '.join(OUTCOMES)}")
    choices = record.get("choices")
    target, stop = text(record.get("target")), text(record.get("stop_reason"))
    return Sample(
        item=str(record.get("id") or required(record, "item", where)),
        content=str(required(record, "item", where)),
        score=number(record.get("score")),
        outcome=outcome,
        prompt=_prompt(record.get("prompt")),
        question=text(record.get("question")),
        target=target,
        answer=text(record.get("answer")),
        extracted=text(record.get("extracted")),
        choices=tuple(map(str, choices)) if isinstance(choices, list) else None,
        gold=choices.index(target) if isinstance(choices, list) and target in choices else None,
        cluster=text(record.get("cluster")),
        repeat=whole(record.get("repeat")) or 0,
        template=text(record.get("template")),
        stop=None if stop is None else _STOPS.get(stop, "unknown"),
        prompt_tokens=whole(record.get("prompt_tokens")),
        generated_tokens=whole(record.get("generated_tokens")),
        max_tokens=whole(record.get("max_tokens")),
        prompt_tokens_dropped=whole(record.get("prompt_tokens_dropped")),
        min_answer_tokens=whole(record.get("min_answer_tokens")),
        chance=number(record.get("chance")),
        error=text(record.get("error")),
        witness=_witness(record),
    )


def _model(value: Any) -> str | None:
    """The model's name, which may stand in a mapping with its kind."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("model") or value.get("path")
    return text(value)


def _witness(record: dict[str, Any]) -> bool | None:
    """As recorded; the shortest answer of this project's items is the length of their solver's witness."""
    if isinstance(record.get("witness"), bool):
        return record["witness"]
    return True if record.get("min_answer_tokens") is not None else None


def _prompt(value: Any) -> str | None:
    """The prompt as one text, also where it is a conversation."""
    if isinstance(value, list):
        return "\n".join(str(message.get("content", "")) for message in value if isinstance(message, dict))
    return text(value)


def _scores(folder: Path, tasks: dict[str, str]) -> dict[str, list[Score]]:
    """The reported figures: mappings with a `score` or `as_scored` below a task's name, anywhere in `result.json`."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    result = read_json(path)
    if not isinstance(result, dict):
        raise UserError(f"{path}: not a mapping of figures")
    found: dict[str, list[Score]] = {}
    _collect(result, tasks, found, None)
    return found


def _collect(value: Any, tasks: dict[str, str], found: dict[str, list[Score]], task: str | None) -> None:
    if not isinstance(value, dict):
        return
    figure = next((number(value[key]) for key in ("score", "as_scored", "accuracy") if key in value), None)
    if task is not None and figure is not None:
        bounds, interval = value.get("bounds"), value.get("interval")
        if bounds is None and "worst" in value and "best" in value:
            bounds = [value["worst"], value["best"]]
        found.setdefault(task, []).append(
            Score(
                "score",
                figure,
                number(value.get("stderr")),
                _pair(interval),
                whole(value.get("n")),
                _pair(bounds),
            )
        )
        return
    for key, inner in value.items():
        _collect(inner, tasks, found, tasks.get(key, task))


def _pair(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and None not in (pair := (number(value[0]), number(value[1]))):
        return pair  # type: ignore[return-value]
    return None
