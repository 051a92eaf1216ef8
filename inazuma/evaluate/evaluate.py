"""An evaluation: a run folder with every sample, the figures that follow from them, and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inazuma.errors import RunError, UserError, needs_extra
from inazuma.evaluate.answering import Answering
from inazuma.evaluate.asking import ask, question
from inazuma.evaluate.documents import document_records, read_documents
from inazuma.evaluate.evidence import evidence_of, records_of
from inazuma.evaluate.outcome import SAMPLES, Sample, read_samples
from inazuma.evaluate.report import write_reports
from inazuma.evaluate.task import check_items
from inazuma.evaluate.tasks import BITS_PER_BYTE, HARNESS, make_tasks
from inazuma.files import atomic_file
from inazuma.runs import Run, produce
from inazuma.runs.lines import encode_line, read_lines
from inazuma.runs.run import MANIFEST

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is asked. The same settings make the same items on every machine."""

    tasks: tuple[str, ...]
    """Names of own tasks, `bits-per-byte`, and `lm-eval:NAME`."""
    text: tuple[str, ...] = ()
    """Files and folders with the text of `bits-per-byte`."""
    lengths: tuple[int, ...] = (1024,)
    """Of the long-context tasks, tokens of 4 bytes."""
    items: int = 50
    """Of each long-context task at each length."""
    max_tokens: int | None = None
    """The limit of an answer; by default each task's own."""
    seed: int = 0
    include_path: str | None = None
    """Where lm-evaluation-harness finds tasks that are not its own."""
    limit: int | None = None
    """So many documents of each of the harness's tasks."""


def evaluate(
    model: Answering,
    settings: Settings,
    out: Path,
    *,
    command: Sequence[str] = (),
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Evaluates a model and writes the run folder `out`; returns its figures.

    A run that was interrupted, or in which some items met infrastructure errors, is taken up again by calling this with
    the same arguments: what was answered is kept.

    Raises:
        UserError: unknown tasks, no items, items twice, a folder that holds something else.
        RunError: there are items that met infrastructure errors; all the rest is written.
    """
    run = _open(out, {"model": model.facts(), "settings": _plain(settings)}, settings, command, force)
    try:
        own = [name for name in settings.tasks if name != BITS_PER_BYTE and not name.startswith(HARNESS)]
        if own:
            _ask_own(run, model, own, settings, progress)
        if BITS_PER_BYTE in settings.tasks:
            documents = read_documents(settings.text)
            _write_records(run, BITS_PER_BYTE, document_records(model, documents, progress))
        harness = [name.removeprefix(HARNESS) for name in settings.tasks if name.startswith(HARNESS)]
        if harness:
            needs_extra("lm-eval", "lm_eval")
            from inazuma.evaluate.harness import run_harness

            found = run_harness(
                model,
                harness,
                include_path=settings.include_path,
                limit=settings.limit,
                kept=run.path / "lm-eval.jsonl",
                progress=progress,
            )
            _merge(run, found.samples)
            for name, records in found.documents.items():
                _write_records(run, name, records)
        samples = read_samples(run.path) if (run.path / SAMPLES).exists() else []
        result = produce(run.path, evidence_of(samples, records_of(run.path)))
        write_reports(run.path, result, samples, run.manifest)
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    except Exception as error:
        run.finish("failed", error=str(error))
        raise
    broken = Counter(sample.error for sample in samples if sample.outcome == "infrastructure_error")
    if broken:
        reason, _ = broken.most_common(1)[0]
        message = f"{broken.total()} of {len(samples)} items met infrastructure errors, most often: {reason}"
        run.finish("interrupted", error=message)
        raise RunError(f"{message}; the rest is in {run.path}, and the same command asks only for these again")
    run.finish("finished")
    return result


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON gives it back."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(settings).items()}


def _open(out: Path, config: Mapping[str, Any], settings: Settings, command: Sequence[str], force: bool) -> Run:
    if not settings.tasks:
        raise UserError("no tasks: there is nothing to evaluate")
    if BITS_PER_BYTE in settings.tasks and not settings.text:
        raise UserError(f"{BITS_PER_BYTE}: name the held-out text with --text")
    if force or not (Path(out) / MANIFEST).is_file():
        return Run.create(out, command=command, config=config, seeds={"items": settings.seed}, force=force)
    run = Run.open(out)
    if run.manifest["config"] != config:
        raise UserError(f"{out}: holds an evaluation of another model or other settings; choose another folder")
    if run.manifest["status"] == "finished":
        raise UserError(f"{out}: is finished; `inazuma verify {out}` checks it, --force does it again")
    run.resumed()
    return run


def _ask_own(run: Run, model: Answering, names: Sequence[str], settings: Settings, progress: Progress) -> None:
    tasks = make_tasks(names, lengths=settings.lengths, count=settings.items)
    pairs = [(task, item) for task in tasks for item in task.items(settings.seed)]
    check_items([item for _, item in pairs])
    kept = _kept(run)
    left = [
        question(task, item, model, settings.max_tokens) for task, item in pairs if (item.task, item.hash) not in kept
    ]
    _write_samples(run, kept.values())
    with open(run.path / SAMPLES, "ab") as handle:
        for done, sample in enumerate(ask(model, left, settings.seed), start=1):
            handle.write(encode_line(sample.record()))
            handle.flush()
            kept[sample.task, sample.item] = sample
            progress("items", len(pairs) - len(left) + done, len(pairs))
    # Answers came in any order; the file has that of the tasks, whatever happened on the way.
    order = {(item.task, item.hash): place for place, (_, item) in enumerate(pairs)}
    _write_samples(run, sorted(kept.values(), key=lambda sample: order.get((sample.task, sample.item), len(order))))


def _kept(run: Run) -> dict[tuple[str, str], Sample]:
    """The samples that an earlier part of the run got, without those that met infrastructure errors."""
    if not (run.path / SAMPLES).exists():
        return {}
    samples = read_samples(run.path)
    return {(sample.task, sample.item): sample for sample in samples if sample.outcome != "infrastructure_error"}


def _merge(run: Run, samples: Sequence[Sample]) -> None:
    """Adds samples behind those of other tasks, in place of their own from before."""
    tasks = {sample.task for sample in samples}
    _write_samples(run, [*(one for one in _kept(run).values() if one.task not in tasks), *samples])


def _write_samples(run: Run, samples: Iterable[Sample]) -> None:
    with atomic_file(run.path / SAMPLES, "wb") as handle:
        handle.writelines(encode_line(sample.record()) for sample in samples)


def _write_records(run: Run, task: str, records: Iterable[Mapping[str, Any]]) -> None:
    path = run.path / "documents" / f"{task}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path, "wb") as handle:
        handle.writelines(encode_line(record) for record in records)
    if not any(True for _ in read_lines(path)):
        raise UserError(f"{task}: no documents")
