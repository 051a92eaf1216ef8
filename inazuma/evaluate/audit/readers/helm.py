"""HELM: a run's folder with `run_spec.json`, `scenario_state.json`, `stats.json` and `per_instance_stats.json`.

HELM reports means and standard deviations over trials, never an error of a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import number, required, text, whole
from inazuma.evaluate.audit.log import Log, Sample, Score, Stop, Task
from inazuma.files import read_json

_FILES = ("run_spec.json", "scenario_state.json", "stats.json", "per_instance_stats.json")
_METRICS = (
    "exact_match",
    "quasi_exact_match",
    "prefix_exact_match",
    "quasi_prefix_exact_match",
    "final_number_exact_match",
    "exact_match_indicator",
    "math_equiv",
    "math_equiv_chain_of_thought",
    "f1_score",
    "rouge_l",
    "bleu_4",
)
"""Metrics of quality, the usual main one first; the others in a stats file are counts, times and bookkeeping."""
_STOPS: dict[str, Stop] = {"stop": "end", "endoftext": "end", "eos": "end", "length": "length", "max_tokens": "length"}


def claims(folder: Path) -> Iterator[Path]:
    if (folder / "run_spec.json").is_file() and (folder / "stats.json").is_file():
        yield folder


def claims_file(path: Path) -> Path | None:
    return next(claims(path.parent), None) if path.name in _FILES else None


def read(folder: Path) -> Log:
    """The run in `folder`; its per-instance files may be missing, its specification and statistics may not."""
    spec, stats = read_json(folder / "run_spec.json"), read_json(folder / "stats.json")
    if not isinstance(spec, dict) or not isinstance(stats, list):
        raise UserError(f"{folder}: run_spec.json and stats.json are not HELM's")
    adapter = required(spec, "adapter_spec", str(folder / "run_spec.json"))
    scores = tuple(_scores(stats))
    samples = tuple(_samples(folder, [score.metric for score in scores]))
    multiple = str(adapter.get("method", "")).startswith("multiple_choice")
    name = str(spec.get("name", folder.name)).partition(":model=")[0].partition(",model=")[0]
    task = Task(
        name,
        samples,
        scores,
        adapter.get("method") != "language_modeling" and not (multiple and "separate" in adapter["method"]),
        whole(adapter.get("max_train_instances")),
        scorer=scores[0].metric if scores else None,
    )
    return Log(
        folder,
        "helm",
        None,
        text(adapter.get("model")),
        (task,),
        temperature=number(adapter.get("temperature")),
        settings=adapter,
    )


def _scores(stats: list[Any]) -> Iterator[Score]:
    found = {}
    for stat in stats:
        name = stat.get("name", {}) if isinstance(stat, dict) else {}
        if "perturbation" not in name and name.get("split", "test") == "test":
            found[name.get("name")] = stat
    for metric in _METRICS:
        mean = number(found[metric].get("mean")) if metric in found else None
        if mean is not None:
            yield Score(metric, mean, n=_instances(found))


def _instances(found: dict[Any, Any]) -> int | None:
    return whole(found.get("num_instances", {}).get("mean"))


def _samples(folder: Path, metrics: list[str]) -> Iterator[Sample]:
    if not (folder / "scenario_state.json").is_file():
        return
    state, values = read_json(folder / "scenario_state.json"), {}
    if (folder / "per_instance_stats.json").is_file():
        path = folder / "per_instance_stats.json"
        for at, record in enumerate(read_json(path), start=1):
            if "perturbation" in record:
                continue
            where = f"{path}: record {at}"
            stats = {
                required(required(stat, "name", where), "name", where): number(stat.get("mean", stat.get("sum")))
                for stat in required(record, "stats", where)
            }
            key = str(required(record, "instance_id", where)), record.get("train_trial_index", 0)
            values.setdefault(key, {}).update(stats)
    adapter = state.get("adapter_spec", {}) if isinstance(state, dict) else {}
    path = folder / "scenario_state.json"
    for at, request in enumerate(required(state, "request_states", str(path)), start=1):
        instance = required(request, "instance", f"{path}: request {at}")
        if instance.get("perturbation") or request.get("request_mode") == "calibration":
            continue
        if request.get("reference_index"):
            continue  # one request for each choice: the first stands for the item
        yield _sample(request, values, metrics, adapter)


def _sample(
    request: dict[str, Any],
    values: dict[tuple[str, int], dict[str, float | None]],
    metrics: list[str],
    adapter: dict[str, Any],
) -> Sample:
    instance, asked, result = request["instance"], request.get("request", {}), request.get("result") or {}
    item, trial = str(instance.get("id")), request.get("train_trial_index", 0)
    stats = values.get((item, trial), {})
    references = instance.get("references") or []
    outputs = [str(reference.get("output", {}).get("text", "")) for reference in references]
    gold = [at for at, reference in enumerate(references) if "correct" in reference.get("tags", [])]
    multiple = str(adapter.get("method", "")).startswith("multiple_choice")
    mapping = request.get("output_mapping")
    completion = next(iter(result.get("completions") or []), None)
    reason = (completion.get("finish_reason") or {}).get("reason") if completion else None
    answer = completion.get("text") if completion else None
    extracted = mapping.get(answer.strip()) if mapping and answer else None
    return Sample(
        item=item,
        score=next((value for metric in metrics if (value := stats.get(metric)) is not None), None),
        prompt=text(asked.get("prompt")),
        question=text(instance.get("input", {}).get("text")),
        target=outputs[gold[0]] if gold else None,
        answer=answer,
        extracted=extracted,
        choices=tuple(outputs) if multiple else None,
        gold=gold[0] if multiple and gold else None,
        repeat=trial,
        stop=None if reason is None else _STOPS.get(reason, "unknown"),
        prompt_tokens=whole(stats.get("num_prompt_tokens")),
        generated_tokens=len(completion["tokens"]) if completion and completion.get("tokens") else None,
        max_tokens=whole(asked.get("max_tokens")),
        prompt_tokens_dropped=int(request["prompt_truncated"]) if "prompt_truncated" in request else None,
        chance=1 / len(outputs) if multiple and outputs else None,
        error=text(result.get("error")) or (None if result.get("success", True) else "the request failed"),
        metrics={metric: value for metric, value in stats.items() if value is not None},
    )
