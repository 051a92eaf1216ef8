"""Readers: logs that lm-eval and Inspect themselves wrote here, the other formats as laid out, and the unreadable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.audit_logs import FORMATS, write
from benchmarks.audit_simulated import choices, log_of, respond, sums
from inazuma.errors import UserError
from inazuma.evaluate.audit.log import Sample
from inazuma.evaluate.audit.readers import inazuma_run, read_study
from inazuma.evaluate.tasks import FAMILIES

ITEMS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i), "choices": [str(2 * i), str(2 * i + 1)], "gold": 0}
         for i in range(1, 31)]  # fmt: skip


def number(sample: Sample) -> int:
    return int(sample.item)


@pytest.fixture(scope="module")
def lm_eval_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lm-eval 0.4.13 writes of three tasks: generated, multiple choice, rolling likelihood."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Doubler(LM):
        """Doubles odd numbers and says what it was given for even ones; likes the first choice."""

        def generate_until(self, requests):  # type: ignore[no-untyped-def]
            given = [int(request.args[0].split("What is ")[1].split()[0]) for request in requests]
            return [str(2 * number if number % 2 else number) for number in given]

        def loglikelihood(self, requests):  # type: ignore[no-untyped-def]
            return [(-1.0 if int(request.args[1]) % 2 == 0 else -2.0, False) for request in requests]

        def loglikelihood_rolling(self, requests):  # type: ignore[no-untyped-def]
            return [-2.0 * len(request.args[0]) for request in requests]

    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
            "test_split": "test", "doc_to_text": "{{question}}", "metadata": {"version": 1.0}}  # fmt: skip
    options = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    written = {
        "doubles": {"output_type": "generate_until", "doc_to_target": "{{answer}}", "generation_kwargs": options,
                    "metric_list": [{"metric": "exact_match"}]},
        "picks": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "gold",
                  "metric_list": [{"metric": "acc"}]},
        "rolls": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
                  "metric_list": [{"metric": "bits_per_byte"}]},
    }  # fmt: skip
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, config in written.items():
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(data | config | {"task": name}))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = simple_evaluate(
        Doubler(), tasks=list(written), task_manager=manager, log_samples=True, bootstrap_iters=100
    )
    samples = results.pop("samples")
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    tracker.general_config_tracker.model_name_sanitized = "doubler"
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, of in samples.items():
        tracker.save_results_samples(task_name=name, samples=of)
    return folder / "out"


def test_what_lm_eval_wrote(lm_eval_folder: Path) -> None:
    (log,) = read_study(lm_eval_folder).logs
    tasks = {task.name: task for task in log.tasks}
    assert (log.format, log.version, log.temperature) == ("lm-eval", "0.4.13", 0.0)
    assert set(tasks) == {"doubles", "picks", "rolls"}
    doubles, picks = tasks["doubles"], tasks["picks"]
    assert [len(task.samples) for task in tasks.values()] == [30, 30, 30]
    assert [s.score for s in sorted(doubles.samples, key=number)] == [1.0, 0.0] * 15
    first = next(s for s in doubles.samples if s.item == "1")
    assert (first.prompt, first.target, first.answer, first.extracted) == ("What is 2 + 2?", "4", "2", "2")
    assert (first.max_tokens, first.stop, doubles.generates, picks.generates) == (16, None, True, False)
    assert doubles.scores[0].value == 0.5 and doubles.scores[0].n == 30
    assert doubles.scores[0].stderr == pytest.approx((0.25 / 29) ** 0.5)
    second = next(s for s in picks.samples if s.item == "1")
    assert (second.choices, second.gold, second.target, second.chance) == (("4", "5"), 0, "4", 0.5)
    assert picks.scores[0].value == 1.0
    # lm-eval gives bits per byte no error.
    assert tasks["rolls"].scores[0].metric == "bits_per_byte" and tasks["rolls"].scores[0].stderr is None


@pytest.fixture(scope="module")
def inspect_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Inspect writes of its mock model: a .eval and a .json of 30 sums, with two answers at the limit."""
    from inspect_ai import Task
    from inspect_ai import eval as evaluate
    from inspect_ai.dataset import Sample as Item
    from inspect_ai.model import GenerateConfig, ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import match
    from inspect_ai.solver import generate

    folder = tmp_path_factory.mktemp("inspect")
    data = [Item(id=str(i), input=item["question"], target=item["answer"], metadata={"cluster": f"c{i // 3}"})
            for i, item in enumerate(ITEMS)]  # fmt: skip
    for form in ("eval", "json"):
        outputs = []
        for i, item in enumerate(ITEMS):
            said, stop = (item["answer"], "stop") if i % 2 else ("Let me think", "max_tokens" if i < 4 else "stop")
            output = ModelOutput.from_content("mockllm/model", said, stop_reason=stop)
            output.usage = ModelUsage(input_tokens=9, output_tokens=16 if stop == "max_tokens" else 3)
            outputs.append(output)
        logs = evaluate(
            Task(
                data,
                name="sums",
                solver=generate(),
                scorer=match(),
                config=GenerateConfig(max_tokens=16, temperature=0.0),
            ),
            model=get_model("mockllm/model", custom_outputs=outputs),
            log_dir=str(folder),
            log_format=form,
            display="none",
            max_samples=1,
            max_connections=1,
        )
        assert logs[0].status == "success", logs[0].error
    return folder


def test_what_inspect_wrote(inspect_folder: Path) -> None:
    both = read_study(inspect_folder).logs
    assert sorted(log.path.suffix for log in both) == [".eval", ".json"]
    for log in both:
        (task,) = log.tasks
        assert (log.format, log.version, log.model) == ("inspect", "0.3.285", "mockllm/model")
        assert (log.temperature, task.name, task.scorer, task.judge) == (0.0, "sums", "match", None)
        ordered = sorted(task.samples, key=number)
        assert [s.score for s in ordered] == [0.0, 1.0] * 15
        assert [s.item for s in ordered if s.stop == "length"] == ["0", "2"]
        sample = ordered[3]
        assert (sample.prompt, sample.target, sample.answer, sample.cluster) == ("What is 4 + 4?", "8", "8", "c1")
        assert (sample.prompt_tokens, sample.generated_tokens, sample.max_tokens) == (9, 3, 16)
        assert task.scores[0].value == 0.5
        assert task.scores[0].stderr == pytest.approx((0.25 / 29) ** 0.5)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["sums", "choices"])
def test_every_format_holds_what_it_can(form: str, kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    items = sums(random, 20) if kind == "sums" else choices(random, 20)
    samples = respond(random, items, 0.5, style="The answer is {0}.")
    samples[4] = replace(samples[4], prompt_tokens_dropped=7, stop="length", generated_tokens=512)
    made = log_of(samples, form, model="acme/larch-1b", generates=not (form == "lm-eval" and kind == "choices"))
    write(made, tmp_path, form)
    (log,) = read_study(tmp_path).logs
    assert log.format == form.removesuffix("-json") and log.model == "acme/larch-1b"
    (task,) = log.tasks
    assert task.scores[0].value == pytest.approx(made.tasks[0].scores[0].value)
    assert (task.scores[0].stderr is None) == (form == "helm")
    # inspect-ai sorts by the names of items.
    for found, sample in zip(sorted(task.samples, key=number), samples, strict=True):
        assert (found.item, found.score, found.prompt) == (sample.item, sample.score, sample.prompt)
        if kind == "choices":
            assert (found.choices, found.gold) == (sample.choices, sample.gold)
        elif form != "inspect":
            assert found.target == sample.target
    if form in ("inazuma", "inspect", "inspect-json", "helm"):
        assert [s.item for s in task.samples if s.stop == "length"] == ["4"]
    if form in ("inazuma", "lighteval", "helm"):
        assert [s.item for s in task.samples if s.prompt_tokens_dropped] == ["4"]


def test_the_older_columns_of_lighteval(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    random = np.random.default_rng(5)
    write(log_of(respond(random, sums(random, 9), 0.5), "lighteval", model="m"), tmp_path, "lighteval")
    (details,) = tmp_path.rglob("*.parquet")
    table = pq.read_table(details)
    pq.write_table(table.rename_columns([f"__{name}__" for name in table.column_names]), details)
    (log,) = read_study(tmp_path).logs
    assert len(log.tasks[0].samples) == 9
    pq.write_table(table.rename_columns(["a", "b", "c"]), details)
    with pytest.raises(UserError, match="row 1: no column 'doc'"):
        read_study(tmp_path)


# ---------------------------------------------------------------------------------------------------------- unreadable


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    random = np.random.default_rng(5)
    return write(log_of(respond(random, sums(random, 20), 0.5), "inazuma", model="m"), tmp_path, "inazuma")


def test_every_long_context_family_of_this_project_is_known_to_v18() -> None:
    assert set(inazuma_run._FAMILIES) == set(FAMILIES)


def test_an_edited_run(run: Path) -> None:
    from inazuma.files import sha256

    before = sha256(run / "samples.jsonl")
    text = (run / "samples.jsonl").read_text()
    (run / "samples.jsonl").write_text(text.replace('"wrong"', '"correct"', 1))
    with pytest.raises(UserError) as caught:
        read_study(run)
    for part in (str(run / "samples.jsonl"), before, sha256(run / "samples.jsonl")):
        assert part in str(caught.value)
    (run / "samples.jsonl").unlink()
    with pytest.raises(UserError, match=r"no log of a known format"):
        read_study(run)


def test_a_run_cut_in_half_or_with_unknown_outcomes(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest.pop("artefacts")  # of a run that was killed
    (run / "manifest.json").write_text(json.dumps(manifest))
    lines = (run / "samples.jsonl").read_text().splitlines()
    (run / "samples.jsonl").write_text("\n".join(lines[:6]) + '\n{"task": "sums", "it')
    with pytest.raises(UserError, match=r"samples\.jsonl:7: cut off or damaged"):
        read_study(run)
    (run / "samples.jsonl").write_text(lines[0] + "\n" + lines[1].replace('"outcome": "', '"outcome": "very '))
    with pytest.raises(UserError, match=r"samples\.jsonl:2: unknown outcome 'very "):
        read_study(run)


def test_lm_eval_cut_in_half_or_of_another_version(lm_eval_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    shutil.copytree(lm_eval_folder, folder)
    (results,) = folder.rglob("results_*.json")
    (samples,) = folder.rglob("samples_doubles_*.jsonl")
    whole = samples.read_bytes()
    halve(samples)
    with pytest.raises(UserError, match=rf"{samples.name}:\d+: cut off or damaged"):
        read_study(folder)
    samples.write_bytes(whole)
    record = json.loads(results.read_text())
    results.write_text(json.dumps(record | {"lm_eval_version": "0.9.1"}))
    with pytest.raises(UserError, match=r"lm-eval 0\.9\.1; this reader knows 0\.4"):
        read_study(folder)
    results.write_text(json.dumps({key: value for key, value in record.items() if key != "configs"}))
    with pytest.raises(UserError, match="no field 'configs'"):
        read_study(folder)
    results.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_study(folder)


def test_inspect_cut_in_half_or_of_another_version(inspect_folder: Path, tmp_path: Path) -> None:
    for path in inspect_folder.iterdir():
        copy = tmp_path / f"half{path.suffix}"
        copy.write_bytes(path.read_bytes())
        if path.suffix == ".json":
            copy.write_text(path.read_text().replace('"version": 2', '"version": 7', 1))
            with pytest.raises(UserError, match="layout version 7"):
                read_study(copy)
            copy.write_bytes(path.read_bytes())
        halve(copy)
        with pytest.raises(UserError, match=r"half\.(json:\d+|eval): cut off or damaged"):
            read_study(copy)


@pytest.mark.parametrize(("form", "name"), [("lighteval", "*.parquet"), ("helm", "scenario_state.json")])
def test_other_formats_cut_in_half(form: str, name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    write(log_of(respond(random, sums(random, 20), 0.5), form, model="m"), tmp_path, form)
    (path,) = tmp_path.rglob(name)
    halve(path)
    with pytest.raises(UserError, match=path.name.replace("|", r"\|")):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "field", "inside"),
    [
        ("scenario_state.json", "instance", lambda record: record["request_states"][2]),
        ("per_instance_stats.json", "stats", lambda record: record[2]),
        ("per_instance_stats.json", "instance_id", lambda record: record[2]),
        ("per_instance_stats.json", "name", lambda record: record[2]["stats"][0]),
    ],
)
def test_helm_of_another_version(
    name: str, field: str, inside: Callable[[Any], dict[str, Any]], tmp_path: Path
) -> None:
    random = np.random.default_rng(5)
    folder = write(log_of(respond(random, sums(random, 20), 0.5), "helm", model="m"), tmp_path, "helm")
    record = json.loads((folder / name).read_text())
    del inside(record)[field]
    (folder / name).write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"{name}: re\w+ 3: no field '{field}'"):
        read_study(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_study(tmp_path / "none")
    with pytest.raises(UserError, match="no log of a known format"):
        read_study(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="not a log of a known format"):
        read_study(tmp_path / "notes.txt")


def test_what_inazuma_compare_wrote_is_a_claim(run: Path) -> None:
    line = {"task": "sums", "verdict": "better", "difference": 0.1, "p_value": 0.01}
    lines = [line, line | {"verdict": "cannot tell: about 300 more items", "difference": -0.01, "p_value": 0.6}]
    folder = run.parent / "compared"
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps({"a": "runs/old", "b": "runs/new/", "comparisons": lines}))
    first, second = read_study(run.parent).declared.comparisons
    assert (first.a, first.b, first.claim, first.difference, first.test) == ("new", "old", "better", 0.1, "paired")
    assert (second.claim, second.p_value, second.correction) == ("none", 0.6, "holm")
    (folder / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match="not a comparison"):
        read_study(run.parent)
