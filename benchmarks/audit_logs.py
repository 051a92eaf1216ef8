"""Writing logs as lm-eval, Inspect, lighteval, HELM and inazuma write them, out of one description of a log.

What a format does not hold (lm-eval: why an answer ended) is left out, so that its reader cannot know it either.
Inspect's logs are written by inspect-ai itself, inazuma's by a `Run`; the others follow the layouts of lm-eval 0.4.13,
lighteval 0.13 and HELM 0.5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inazuma.evaluate.audit.log import Log, Sample, Task
from inazuma.files import write_json
from inazuma.runs import Run

FORMATS = ("inazuma", "lm-eval", "inspect", "inspect-json", "lighteval", "helm")
_STAMP = "2026-11-02T10-00-00.000000"


def write(log: Log, folder: Path, form: str) -> Path:
    """Writes the log below `folder`, in a file or folder of the log's name where the format lets one choose it."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "inazuma": write_inazuma,
        "lm-eval": write_lm_eval,
        "inspect": write_inspect,
        "inspect-json": lambda log, folder: write_inspect(log, folder, ".json"),
        "lighteval": write_lighteval,
        "helm": write_helm,
    }[form](log, folder)


def _lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ inazuma

_STOPS = {"end": "stop", "context": "context", "length": "length", "filter": "content_filter", "unknown": "unknown"}
_SAMPLE = (
    "cluster",
    "outcome",
    "score",
    "prompt",
    "question",
    "target",
    "answer",
    "extracted",
    "choices",
    "repeat",
    "template",
    "prompt_tokens",
    "generated_tokens",
    "max_tokens",
    "prompt_tokens_dropped",
    "min_answer_tokens",
    "chance",
    "error",
    "witness",
)


def write_inazuma(log: Log, folder: Path) -> Path:
    config = {"model": log.model, "tokenizer": log.tokenizer, "temperature": log.temperature, **log.settings}
    config |= {"batch_size": log.batch_size, "families": {t.name: t.family for t in log.tasks if t.family}}
    seeds = {} if log.seed is None else {"seed": log.seed}
    run = Run.create(folder / log.path.name, command=["inazuma", "eval"], config=config, seeds=seeds)
    records, result = [], {}
    for task in log.tasks:
        for sample in task.samples:
            record = {"task": task.name, **{key: getattr(sample, key) for key in _SAMPLE}}
            record["item"] = hashlib.sha256(f"{sample.item} {sample.question} {sample.target}".encode()).hexdigest()
            record["id"] = sample.item
            record["stop_reason"] = None if sample.stop is None else _STOPS[sample.stop]
            record["outcome"] = sample.outcome or ("correct" if sample.score == 1 else "wrong")
            records.append({key: value for key, value in record.items() if value is not None})
        if task.scores:
            score = task.scores[0]
            figures = {"score": score.value, "stderr": score.stderr, "interval": score.interval, "n": score.n}
            if score.bounds:
                figures |= {"worst": score.bounds[0], "best": score.bounds[1]}
            result[task.name] = {key: value for key, value in figures.items() if value is not None}
    _lines(run.path / "samples.jsonl", records)
    write_json(run.path / "result.json", {"tasks": result})
    run.finish("finished")
    return run.path


# ------------------------------------------------------------------------------------------------------------ lm-eval


def write_lm_eval(log: Log, folder: Path) -> Path:
    folder = folder / str(log.model).replace("/", "__")
    folder.mkdir(exist_ok=True)
    stamp = _STAMP.replace("000000", f"{len(list(folder.glob('results_*'))):06}")
    results, configs = {}, {}
    for task in log.tasks:
        figures: dict[str, Any] = {"name": task.name, "alias": task.name, "sample_len": len(task.samples)}
        for score in task.scores:
            figures[f"{score.metric},none"] = score.value
            figures[f"{score.metric}_stderr,none"] = "N/A" if score.stderr is None else score.stderr
        results[task.name] = figures
        sampled = {} if log.temperature is None else {"do_sample": log.temperature > 0, "temperature": log.temperature}
        configs[task.name] = {
            "task": task.name,
            "output_type": "generate_until" if task.generates else "multiple_choice",
            "num_fewshot": task.fewshot,
            "generation_kwargs": {"until": ["\n\n"], **sampled} if task.generates else None,
            "repeats": 1,
        }
        metric = task.scores[0].metric if task.scores else "exact_match"
        records = [_lm_eval_sample(sample, at, task, metric) for at, sample in enumerate(task.samples)]
        _lines(folder / f"samples_{task.name}_{stamp}.jsonl", records)
    record = {
        "results": results,
        "configs": configs,
        "config": {
            "model": "hf",
            "model_args": {"pretrained": log.model, "tokenizer": log.tokenizer},
            "batch_size": log.batch_size,
            "random_seed": log.seed,
        },
        "lm_eval_version": "0.4.13",
        "model_name": log.model,
    }
    path = folder / f"results_{stamp}.json"
    path.write_text(json.dumps(record, indent=2))
    return path


def _lm_eval_sample(sample: Sample, at: int, task: Task, metric: str) -> dict[str, Any]:
    doc = {"question": sample.question or sample.prompt or ""}
    if sample.cluster is not None:
        doc["passage"] = sample.cluster
    record: dict[str, Any] = {"doc_id": sample.item, "doc": doc, "filter": "none", "metrics": [metric]}
    if task.generates:
        options = {"until": ["\n\n"]} | ({"max_gen_toks": sample.max_tokens} if sample.max_tokens else {})
        record |= {
            "target": sample.target,
            "arguments": {"gen_args_0": {"arg_0": sample.prompt, "arg_1": options}},
            "resps": [[sample.answer or ""]],
            "filtered_resps": [sample.extracted if sample.extracted is not None else sample.answer or ""],
        }
    else:
        choices = sample.choices or ()
        record["target"] = str(sample.gold)
        record["arguments"] = {
            f"gen_args_{i}": {"arg_0": sample.prompt, "arg_1": f" {c}"} for i, c in enumerate(choices)
        }
        record["resps"] = [[["-1.0", "False"]] for _ in choices]
        record["filtered_resps"] = [["-1.0", "False"] for _ in choices]
    if sample.score is not None:
        record[metric] = sample.score
    record["doc_hash"] = hashlib.sha256(json.dumps(doc).encode()).hexdigest()
    return record


# ------------------------------------------------------------------------------------------------------------ Inspect


def write_inspect(log: Log, folder: Path, suffix: str = ".eval") -> Path:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalPlan,
        EvalResults,
        EvalScore,
        EvalSpec,
        write_eval_log,
    )
    from inspect_ai.log._log import EvalScorer  # public in the layout, exported nowhere
    from inspect_ai.model import GenerateConfig

    (task,) = log.tasks
    limits = {sample.max_tokens for sample in task.samples}
    metrics = {}
    for score in task.scores:
        metrics[score.metric] = EvalMetric(name=score.metric, value=score.value)
        if score.stderr is not None:
            metrics["stderr"] = EvalMetric(name="stderr", value=score.stderr)
        if score.interval is not None:
            metrics["ci_lower"] = EvalMetric(name="ci_lower", value=score.interval[0])
            metrics["ci_upper"] = EvalMetric(name="ci_upper", value=score.interval[1])
    scorer = "model_graded_qa" if task.judge else task.scorer or "match"
    asked = GenerateConfig(
        max_tokens=next(iter(limits)) if len(limits) == 1 else None,
        temperature=log.temperature,
        seed=log.seed,
        max_connections=log.batch_size,
    )
    record = EvalLog(
        status="success",
        eval=EvalSpec(
            created="2026-11-02T10:00:00+00:00",
            task=task.name,
            dataset=EvalDataset(name="made here", samples=len(task.samples)),
            model=str(log.model),
            config=EvalConfig(),
            packages={"inspect_ai": "0.3.285"},
            scorers=[
                EvalScorer(name=scorer, options={"model": task.judge} if task.judge and task.judge != log.model else {})
            ],
        ),
        plan=EvalPlan(config=asked),
        results=EvalResults(
            total_samples=len(task.samples),
            completed_samples=sum(sample.error is None for sample in task.samples),
            scores=[EvalScore(name=scorer, scorer=scorer, scored_samples=len(task.samples), metrics=metrics)],
        ),
        samples=[_inspect_sample(sample, str(log.model), scorer) for sample in task.samples],
    )
    path = folder / f"{log.path.name}{suffix}"
    write_eval_log(record, str(path))
    return path


def _inspect_sample(sample: Sample, model: str, scorer: str) -> Any:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ModelOutput, ModelUsage
    from inspect_ai.scorer import Score

    stops = {"end": "stop", "length": "max_tokens", "context": "model_length", "filter": "content_filter"}
    output = ModelOutput(model=model)
    if sample.answer is not None:
        output = ModelOutput.from_content(model, sample.answer, stop_reason=stops.get(sample.stop or "", "unknown"))
    if sample.generated_tokens is not None:
        output.usage = ModelUsage(input_tokens=sample.prompt_tokens or 0, output_tokens=sample.generated_tokens)
    metadata = {
        "cluster": sample.cluster,
        "template": sample.template,
        "witness": sample.witness,
        "min_answer_tokens": sample.min_answer_tokens,
        "chance": sample.chance,
    }
    value = {None: None, 0.0: "I", 1.0: "C"}.get(sample.score, sample.score)
    error = sample.error and EvalError(message=sample.error, traceback=sample.error, traceback_ansi=sample.error)
    return EvalSample(
        id=sample.item,
        epoch=sample.repeat + 1,
        input=sample.prompt or sample.question or "",
        choices=list(sample.choices) if sample.choices else None,
        target=chr(ord("A") + sample.gold) if sample.choices and sample.gold is not None else sample.target or "",
        output=output,
        scores={} if value is None else {scorer: Score(value=value, answer=sample.extracted)},
        metadata={key: found for key, found in metadata.items() if found is not None},
        error=error or None,
    )


# ---------------------------------------------------------------------------------------------------------- lighteval


def write_lighteval(log: Log, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = str(log.model)
    results, tasks = {}, {}
    details = folder / "details" / name / _STAMP
    details.mkdir(parents=True)
    for task in log.tasks:
        key = f"{task.name}|{task.fewshot or 0}"
        figures: dict[str, float] = {}
        for score in task.scores:
            figures[score.metric] = score.value
            if score.stderr is not None:
                figures[f"{score.metric}_stderr"] = score.stderr
        results[key] = figures
        tasks[task.name] = {"name": task.name, "generation_size": None, "effective_num_docs": len(task.samples)}
        metric = task.scores[0].metric if task.scores else "em"
        rows = [_lighteval_row(sample, metric, task.generates) for sample in task.samples]
        pq.write_table(pa.Table.from_pylist(rows), details / f"details_{key}_{_STAMP}.parquet")
    generation = {"temperature": log.temperature, "seed": log.seed, "max_new_tokens": None}
    model = {
        "model_name": name,
        "tokenizer": log.tokenizer,
        "batch_size": log.batch_size,
        "generation_parameters": generation,
    }
    record = {
        "config_general": {"lighteval_sha": "?", "model_config": model, "model_name": name},
        "results": {**results, "all": next(iter(results.values()), {})},
        "config_tasks": tasks,
    }
    path = folder / "results" / name / f"results_{_STAMP}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record, indent=2))
    return path


def _lighteval_row(sample: Sample, metric: str, generates: bool) -> dict[str, Any]:
    choices = list(sample.choices) if sample.choices else [sample.target or ""]
    return {
        "doc": {
            "query": sample.question or sample.prompt,
            "choices": choices,
            "gold_index": sample.gold if sample.choices else 0,
            "id": sample.item,
            "generation_size": sample.max_tokens,
            "specific": {"extracted_predictions": [sample.extracted] if sample.extracted is not None else []},
        },
        "model_response": {
            "input": sample.prompt,
            "text": [sample.answer or ""] if generates else [],
            "output_tokens": [[7] * (sample.generated_tokens or 0)],
            "input_tokens": [7] * (sample.prompt_tokens or 0),
            "truncated_tokens_count": sample.prompt_tokens_dropped or 0,
        },
        "metric": {metric: sample.score},
    }


# --------------------------------------------------------------------------------------------------------------- HELM


def write_helm(log: Log, folder: Path) -> Path:
    (task,) = log.tasks
    folder = folder / log.path.name
    folder.mkdir()
    multiple = any(sample.choices for sample in task.samples)
    adapter = {
        "method": "multiple_choice_joint" if multiple else "generation",
        "model": log.model,
        "temperature": log.temperature or 0.0,
        "max_train_instances": task.fewshot or 0,
    }
    split = {"split": "test"}
    stats = [
        {"name": {"name": s.metric, **split}, "count": 1, "sum": s.value, "mean": s.value, "stddev": 0.0}
        for s in task.scores
    ]
    stats.append({"name": {"name": "num_instances", **split}, "count": 1, "mean": len(task.samples)})
    metric = task.scores[0].metric if task.scores else "exact_match"
    states, instances = [], []
    for sample in task.samples:
        states.append(_helm_state(sample, str(log.model)))
        own = {metric: sample.score, "num_prompt_tokens": sample.prompt_tokens}
        instances.append(
            {
                "instance_id": sample.item,
                "train_trial_index": sample.repeat,
                "stats": [
                    {"name": {"name": key, **split}, "count": 1, "sum": value, "mean": value}
                    for key, value in own.items()
                    if value is not None
                ],
            }
        )
    spec = {"name": f"{task.name}:model={log.model}", "adapter_spec": adapter}
    for name, value in (
        ("run_spec", spec),
        ("stats", stats),
        ("scenario_state", {"adapter_spec": adapter, "request_states": states}),
        ("per_instance_stats", instances),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1))
    return folder


def _helm_state(sample: Sample, model: str) -> dict[str, Any]:
    outputs = sample.choices or (sample.target or "",)
    gold = sample.gold if sample.choices else 0
    references = [
        {"output": {"text": text}, "tags": ["correct"] if i == gold else []} for i, text in enumerate(outputs)
    ]
    reasons = {"end": "stop", "length": "length"}
    completion: dict[str, Any] = {"text": sample.answer or "", "logprob": 0.0, "tokens": []}
    completion["tokens"] = [{"text": "", "logprob": 0.0}] * (sample.generated_tokens or 0)
    if sample.stop in reasons:
        completion["finish_reason"] = {"reason": reasons[sample.stop]}
    state: dict[str, Any] = {
        "instance": {
            "input": {"text": sample.question or sample.prompt},
            "references": references,
            "split": "test",
            "id": sample.item,
        },
        "train_trial_index": sample.repeat,
        "request": {
            "model": model,
            "prompt": sample.prompt,
            "temperature": 0.0,
            "max_tokens": sample.max_tokens or 100,
        },
        "result": {"success": sample.error is None, "completions": [completion], "cached": False},
        "num_train_instances": 0,
        "prompt_truncated": bool(sample.prompt_tokens_dropped),
    }
    if sample.error:
        state["result"]["error"] = sample.error
    if sample.choices:
        state["output_mapping"] = {chr(ord("A") + i): text for i, text in enumerate(sample.choices)}
    return state
