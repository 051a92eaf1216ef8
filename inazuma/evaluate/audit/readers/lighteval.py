"""lighteval: `results_*.json` with the `details_*.parquet` of each task.

The details' columns are `doc`, `metric` and `model_response` from 0.13 on and had underscores around them before. Their
count of truncated tokens was computed from characters in some versions, so it says whether, not how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inazuma.errors import UserError
from inazuma.evaluate.audit.files import number, required, text, whole
from inazuma.evaluate.audit.log import Log, Sample, Score, Task
from inazuma.files import read_json


def claims(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.glob("results_*.json")) if claims_file(path))


def claims_file(path: Path) -> Path | None:
    if path.name.startswith("results_") and path.suffix == ".json":
        record = read_json(path)
        return path if isinstance(record, dict) and "config_general" in record else None
    return None


def read(path: Path) -> Log:
    """The results file `path` with the details found for its time stamp in the output folder."""
    results = read_json(path)
    general, reported = results["config_general"], required(results, "results", str(path))
    if not isinstance(general, dict) or "lighteval_sha" not in general:
        raise UserError(f"{path}: no lighteval_sha in config_general; is this another version of the format?")
    configs = results.get("config_tasks") or {}
    model = general.get("model_config") if isinstance(general.get("model_config"), dict) else {}
    generation = model.get("generation_parameters") or general.get("generation_parameters") or {}
    tasks = []
    for name, figures in reported.items():
        if name == "all" or name.endswith("_average") or ":_average|" in name:
            continue
        config = configs.get(name) or configs.get(name.rpartition("|")[0]) or {}
        scores = tuple(_scores(figures, whole(config.get("effective_num_docs"))))
        limit = whole(generation.get("max_new_tokens")) or whole(config.get("generation_size"))
        details = _details(path, name)
        samples = tuple(_samples(details, scores, limit)) if details else ()
        generates = not samples or any(sample.answer is not None for sample in samples)
        plain, _, last = name.rpartition("|")
        shots = whole(last)
        # The number of examples is part of lighteval's names; it stands apart here, as for every other format.
        known = f"{plain}|" if sum(other.startswith(f"{plain}|") for other in reported) > 1 else plain
        label = plain if shots is not None and known == plain else name
        tasks.append(Task(label, samples, scores, generates, shots, scorer=", ".join(s.metric for s in scores) or None))
    return Log(
        path,
        "lighteval",
        text(general.get("lighteval_sha")),
        text(general.get("model_name") or model.get("model_name")),
        tuple(tasks),
        tokenizer=text(model.get("tokenizer")),
        temperature=number(generation.get("temperature")),
        seed=whole(generation.get("seed")),
        batch_size=whole(general.get("override_batch_size") or model.get("batch_size")),
        settings=general,
    )


def _details(path: Path, task: str) -> Path | None:
    stamp = path.stem.removeprefix("results_")
    top = path.parent
    for _ in range(4):  # {out}/results/{organisation}/{model}/results_*.json
        if found := sorted(top.rglob(f"details_*_{stamp}.parquet")):
            wanted = {f"details_{task}_{stamp}", f"details_{task.replace('|', '_')}_{stamp}"}
            return next((file for file in found if file.stem in wanted), None)
        if top.name == "results":
            top = top.parent / "details"
            if not top.is_dir():
                return None
        else:
            top = top.parent
    return None


def _scores(figures: dict[str, Any], n: int | None) -> Iterator[Score]:
    for metric, value in figures.items():
        figure = number(value)
        if figure is not None and not metric.endswith("_stderr"):
            yield Score(metric, figure, number(figures.get(f"{metric}_stderr")), None, n)


def _samples(path: Path, scores: tuple[Score, ...], limit: int | None) -> Iterator[Sample]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cut off or damaged ({str(error).splitlines()[0]})") from None
    for number_, row in enumerate(rows):
        where = f"{path.name}: row {number_ + 1}"
        doc, metric, response = (_column(row, name, where) for name in ("doc", "metric", "model_response"))
        metrics = {key: value for key, found in metric.items() if (value := number(found)) is not None}
        choices = tuple(map(str, doc.get("choices") or ()))
        gold = doc.get("gold_index")
        gold = whole(gold[0] if isinstance(gold, list) and gold else gold)
        texts = response.get("text") or []
        multiple = len(choices) > 1
        tokens = response.get("output_tokens") or []
        answer = None if multiple and not texts else text(texts)
        yield Sample(
            item=str(doc.get("id") or number_),
            score=next((metrics[score.metric] for score in scores if score.metric in metrics), None),
            prompt=text(response.get("input")) or text(doc.get("query")),
            question=text(doc.get("query")),
            target=choices[gold] if gold is not None and 0 <= gold < len(choices) else None,
            answer=answer,
            extracted=text((doc.get("specific") or {}).get("extracted_predictions")),
            choices=choices if multiple else None,
            gold=gold if multiple else None,
            prompt_tokens=len(response["input_tokens"]) if response.get("input_tokens") else None,
            generated_tokens=len(tokens[0]) if answer is not None and tokens and isinstance(tokens[0], list) else None,
            max_tokens=whole(doc.get("generation_size")) or (limit if answer is not None else None),
            prompt_tokens_dropped=whole(response.get("truncated_tokens_count")),
            chance=1 / len(choices) if multiple else None,
            metrics=metrics,
        )


def _column(row: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = row.get(name, row.get(f"__{name}__"))
    if not isinstance(value, dict):
        raise UserError(f"{where}: no column {name!r}; this reader knows the details of lighteval 0.11 to 0.13")
    return value
