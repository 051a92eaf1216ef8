"""lm-evaluation-harness: `results_*.json` and the `samples_*.jsonl` that `--log_samples` writes beside it.

The samples hold neither stop reasons nor token counts; a task with several filters is several tasks here, for each
filter extracts and scores by itself. Layout as of 0.4.13.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import number, required, strict_lines, text, whole
from inazuma.evaluate.audit.log import Log, Sample, Score, Task
from inazuma.files import read_json

_STAMP = re.compile(r"(?:results|samples_.+)_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl?$")
_PASSAGES = ("passage", "context", "article", "story", "paragraph", "document")
"""Fields of a document that several questions may share; which of them is shared is seen from the samples."""
_QUESTIONS = ("question", "query", "problem", "input", "goal", "premise", "sentence")


def claims(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("results_*.json")):
        if _is_ours(path):
            yield path
    results = {_stamp(path) for path in folder.glob("results_*.json")}
    for path in sorted(folder.glob("samples_*.jsonl")):
        if _stamp(path) not in results:
            raise UserError(f"{path}: samples of lm-eval whose results_{_stamp(path)}.json is missing")


def claims_file(path: Path) -> Path | None:
    if path.name.startswith("samples_") and path.suffix == ".jsonl":
        beside = path.with_name(f"results_{_stamp(path)}.json")
        if not beside.is_file():
            raise UserError(f"{path}: samples of lm-eval whose {beside.name} is missing")
        return beside
    return path if path.name.startswith("results_") and path.suffix == ".json" and _is_ours(path) else None


def _is_ours(path: Path) -> bool:
    # lighteval names its results the same, and puts `config_general` into them.
    record = read_json(path)
    return isinstance(record, dict) and "config_general" not in record and "config_tasks" not in record


def _stamp(path: Path) -> str:
    found = _STAMP.search(path.name)
    return found[1] if found else ""


def read(path: Path) -> Log:
    """The results file `path` with its samples; a `UserError` for another version or a damaged file."""
    results = read_json(path)
    version = text(results.get("lm_eval_version"))
    if version is not None and not version.startswith("0.4"):
        raise UserError(f"{path}: written by lm-eval {version}; this reader knows 0.4")
    reported = required(results, "results", str(path))
    configs, config = required(results, "configs", str(path)), results.get("config") or {}
    tasks = [
        task
        for file in sorted(path.parent.glob(f"samples_*_{_stamp(path)}.jsonl"))
        for task in _tasks(file, reported, configs)
    ]
    sampled = {task.name.split(" · ")[0] for task in tasks}
    tasks += [
        Task(name, (), tuple(_scores(figures, None)), configs.get(name, {}).get("output_type") == "generate_until")
        for name, figures in reported.items()
        if name not in sampled and name in configs
    ]
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    return Log(
        path,
        "lm-eval",
        version,
        text(results.get("model_name") or config.get("model")),
        tuple(tasks),
        tokenizer=text(arguments.get("tokenizer")),
        temperature=_temperature(configs),
        seed=whole(config.get("random_seed")),
        batch_size=whole(config.get("batch_size")),
        settings=config,
    )


def _temperature(configs: dict[str, Any]) -> float | None:
    """Zero where every generating task says that it does not sample."""
    kwargs = [c["generation_kwargs"] for c in configs.values() if isinstance(c.get("generation_kwargs"), dict)]
    if not kwargs:
        return 0.0
    return 0.0 if all(k.get("do_sample") is False or k.get("temperature") == 0 for k in kwargs) else None


def _tasks(file: Path, reported: dict[str, Any], configs: dict[str, Any]) -> Iterator[Task]:
    name = file.name.removeprefix("samples_").removesuffix(f"_{_stamp(file)}.jsonl")
    config = configs.get(name, {})
    lines: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for where, record in strict_lines(file):
        lines.setdefault(str(record.get("filter", "none")), []).append((where, record))
    for which, records in lines.items():
        scores = tuple(_scores(reported.get(name, {}), which))
        passages = _shared(records)
        samples = tuple(_sample(record, where, config, scores, passages) for where, record in records)
        yield Task(
            name if len(lines) == 1 else f"{name} · {which}",
            samples,
            scores,
            config.get("output_type") == "generate_until",
            whole(config.get("num_fewshot")),
            scorer=", ".join(sorted({score.metric for score in scores})) or None,
        )


def _shared(records: list[tuple[str, dict[str, Any]]]) -> str | None:
    """The field that holds the passage of several questions, if one does."""
    for field in _PASSAGES:
        values = [record.get("doc", {}).get(field) for _, record in records if isinstance(record.get("doc"), dict)]
        if len(values) == len(records) and all(isinstance(value, str) and value for value in values):
            questions = {record["doc"].get("question") for _, record in records}
            if len(set(values)) < len(values) and len(questions) > 1:
                return field
    return None


def _scores(figures: dict[str, Any], which: str | None) -> Iterator[Score]:
    for key, value in figures.items():
        metric, _, filter_name = key.partition(",")
        figure = number(value) if filter_name and not isinstance(value, str) else None
        if figure is None or metric.endswith("_stderr") or (which is not None and filter_name != which):
            continue
        stderr = number(figures.get(f"{metric}_stderr,{filter_name}"))
        yield Score(metric, figure, stderr, None, whole(figures.get("sample_len")))


def _sample(
    record: dict[str, Any], where: str, config: dict[str, Any], scores: tuple[Score, ...], passage: str | None
) -> Sample:
    doc = record.get("doc") if isinstance(record.get("doc"), dict) else {}
    requests = record.get("arguments")
    first = requests.get("gen_args_0", {}) if isinstance(requests, dict) else {}
    options = first.get("arg_1")
    options = options if isinstance(options, dict) else {}
    metrics = {
        metric: value for metric in record.get("metrics", []) if (value := number(record.get(metric))) is not None
    }
    choices = None
    if config.get("output_type") == "multiple_choice" and isinstance(requests, dict):
        choices = tuple(str(request.get("arg_1", "")).strip() for request in requests.values())
    gold = whole(record.get("target")) if choices else None
    answers = record.get("filtered_resps")
    return Sample(
        item=str(required(record, "doc_id", where)),
        score=next((metrics[score.metric] for score in scores if score.metric in metrics), None),
        prompt=text(first.get("arg_0")),
        question=next((doc[key] for key in _QUESTIONS if isinstance(doc.get(key), str)), None),
        target=choices[gold]
        if choices and gold is not None and 0 <= gold < len(choices)
        else text(record.get("target")),
        answer=_answer(record.get("resps")) if choices is None else None,
        extracted=text(answers) if choices is None and isinstance(answers, list) else None,
        choices=choices,
        gold=gold,
        cluster=doc.get(passage) if passage else None,
        max_tokens=whole(options.get("max_gen_toks")),
        chance=1 / len(choices) if choices else None,
        metrics=metrics,
    )


def _answer(responses: Any) -> str | None:
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses if isinstance(responses, str) else None
