"""Benchmarks of lm-evaluation-harness: the harness asks and scores, and its samples become ours, with an outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from inazuma.errors import UserError
from inazuma.evaluate.answering import Answering
from inazuma.evaluate.harness_model import Asked, HarnessModel, request_key
from inazuma.evaluate.outcome import Outcome, Sample, item_hash
from inazuma.evaluate.tasks import HARNESS

SEED = 1234
"""The harness's own default, for its choice of examples."""


@dataclass
class Found:
    """Samples, and for tasks about the likelihood of texts the records of documents, by task."""

    samples: list[Sample] = field(default_factory=list)
    documents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def run_harness(
    model: Answering,
    names: Sequence[str],
    *,
    include_path: str | None,
    limit: int | None,
    kept: Path,
    progress: Any,
) -> Found:
    """Runs tasks of the harness, whole groups too; `kept` is the file of replies that are not asked for again.

    Raises:
        UserError: unknown tasks, or tasks without a score from 0 to 1 for each sample.
    """
    # To know its own tasks the harness reads thousands of files; where only a person's own are asked for, it need not.
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if include_path is None or not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=include_path)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"{HARNESS}{unknown[0]}: lm-evaluation-harness {lm_eval.__version__} has no such task")
    asked = HarnessModel(model, kept, progress)
    results = lm_eval.simple_evaluate(
        asked,
        tasks=list(names),
        limit=limit,
        bootstrap_iters=0,
        task_manager=manager,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    found = Found()
    for task, samples in results["samples"].items():
        output = results["configs"][task].get("output_type")
        if output == "loglikelihood_rolling":
            found.documents[f"{HARNESS}{task}"] = [_document(sample, asked) for sample in samples]
            continue
        metric = _metric(task, samples, results["higher_is_better"].get(task, {}))
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        seen: dict[str, str] = {}
        for sample in samples:
            name = f"{HARNESS}{task}" + (f"/{sample['filter']}" if len(filters) > 1 else "")
            made = _sample(name, sample, metric, output, asked, model)
            if made.item in seen:
                made = _again(made, seen[made.item])
            else:
                seen[made.item] = made.id
            found.samples.append(made)
    return found


def _metric(task: str, samples: Sequence[Mapping[str, Any]], upwards: Mapping[str, Any]) -> str:
    """The first metric of the task that grades every sample from 0 to 1."""
    for metric in samples[0]["metrics"]:
        values = [sample[metric] for sample in samples]
        if upwards.get(metric) is not False and all(isinstance(x, int | float) and 0 <= x <= 1 for x in values):
            return metric
    raise UserError(f"{HARNESS}{task}: none of its metrics ({', '.join(samples[0]['metrics'])}) grades a sample 0 to 1")


_KINDS = {"generate_until": "generate_until", "multiple_choice": "loglikelihood", "loglikelihood": "loglikelihood"}


def _sample(
    name: str, sample: Mapping[str, Any], metric: str, output: str, asked: HarnessModel, model: Answering
) -> Sample:
    replies = [asked.asked[request_key(_KINDS[output], arguments)] for arguments in sample["arguments"]]
    prompt, target = sample["arguments"][0][0], sample["target"]
    target = target if isinstance(target, str | int | float | list | dict) else str(target)
    answer = extracted = chance = None
    if output == "multiple_choice":
        choices = [arguments[1] for arguments in sample["arguments"]]
        # Questions may be the same and only the choices differ.
        target, chance = {"right": target, "choices": choices}, 1 / len(choices)
        answer = extracted = choices[max(range(len(choices)), key=lambda i: replies[i].result[0])]
    elif output == "generate_until":
        answer = replies[0].result
        extracted = sample["filtered_resps"][0]
        extracted = extracted if isinstance(extracted, str) else json.dumps(extracted, ensure_ascii=False, default=str)
    outcome, error = _outcome(replies, output, float(sample[metric]), answer)
    first = replies[0]
    return Sample(
        task=name,
        item=item_hash(name, prompt, target),
        id=str(sample["doc_id"]),
        cluster=None,
        outcome=outcome,
        score=None if outcome in ("infrastructure_error", "invalid_item") else float(sample[metric]),
        prompt=prompt,
        target=target,
        answer=answer,
        extracted=extracted,
        stop_reason=first.reply.stop_reason,
        prompt_tokens=first.reply.prompt_tokens,
        generated_tokens=first.reply.generated_tokens,
        max_tokens=first.max_tokens,
        prompt_tokens_dropped=max(
            (one.reply.dropped for one in replies if one.reply.dropped is not None), default=None
        ),
        min_answer_tokens=None,
        chance=chance,
        seed=SEED,
        batch_size=model.batch_size,
        error=error,
    )


def _outcome(replies: Sequence[Asked], output: str, score: float, answer: str | None) -> tuple[Outcome, str | None]:
    for one in replies:
        if one.reply.error is not None:
            return "infrastructure_error", one.reply.error
    dropped = max(one.reply.dropped or 0 for one in replies)
    if dropped:
        return "invalid_item", f"the prompt does not fit the model: {dropped} of its tokens were dropped"
    if replies[0].reply.refused:
        return "refused", None
    if output == "generate_until" and replies[0].reply.stop_reason == "length":
        return "truncated", None
    if score == 1:
        return "correct", None
    return ("no_answer" if output == "generate_until" and not (answer or "").strip() else "wrong"), None


def _again(sample: Sample, first: str) -> Sample:
    return replace(sample, outcome="invalid_item", score=None, error=f"the same item as {first}")


def _document(sample: Mapping[str, Any], asked: HarnessModel) -> dict[str, Any]:
    [arguments] = sample["arguments"]
    one = asked.asked[request_key("loglikelihood_rolling", arguments)]
    size = len(arguments[0].encode())
    return {"document": sample["doc_hash"], "nll": -one.result, "tokens": one.reply.prompt_tokens, "bytes": size}
