"""Answers that were cut off at the output limit count as wrong."""

from __future__ import annotations

from collections.abc import Iterator

from inazuma.evaluate.audit.finding import Found, Undecided, Word, some
from inazuma.evaluate.audit.log import Sample, Study, Task
from inazuma.evaluate.audit.measure import percent

NUMBER = "V01"
TITLE = "Output limit counted as failure"
SOURCE = (
    "Shojaee et al. 2025 (The Illusion of Thinking) and Lawsen's comment, arXiv 2506.09250; olmo-eval#399: IFEval "
    "69.3 reported, 95.6 on completed answers, 36.8 % of answers at the limit"
)
FIX = "raise the limit until at most 1 % of answers end there, or report the score with its worst and best bounds"

_TOLERATED = 0.01
_FEWEST, _SHORTEST = 20, 8


def check(study: Study) -> Iterator[Word]:
    for _, task, name in study.tasks():
        if not task.generates or not task.samples:
            continue
        known = [sample for sample in task.samples if _known(sample)]
        if 2 * len(known) < len(task.samples):
            yield Undecided(name, "the log holds neither stop reasons nor the lengths of answers")
            continue
        yield from _cut(task, name)
        yield from _equal_lengths(task, name)


def _known(sample: Sample) -> bool:
    lengths = sample.generated_tokens is not None and sample.max_tokens is not None
    return lengths or sample.stop not in (None, "unknown") or sample.outcome is not None or sample.error is not None


def was_cut(sample: Sample) -> bool:
    """Whether the answer ended at the limit of new tokens."""
    if sample.stop not in (None, "unknown"):
        return sample.stop == "length" or sample.outcome == "truncated"
    full = None not in (sample.generated_tokens, sample.max_tokens) and sample.generated_tokens >= sample.max_tokens
    return sample.outcome == "truncated" or full


def _cut(task: Task, name: str) -> Iterator[Word]:
    # An answer that was right before it was cut off is right.
    cut = [sample for sample in task.samples if was_cut(sample) and not (sample.score or 0) >= 1]
    n = len(task.samples)
    if len(cut) <= _TOLERATED * n or any(score.bounds for score in task.scores):
        return
    correct = sum(sample.score or 0 for sample in task.samples)
    done = [sample for sample in task.samples if not was_cut(sample)]
    completed = sum(sample.score or 0 for sample in done) / len(done) if done else None
    yield Found(
        name,
        f"{len(cut)} of {n} answers ({percent(len(cut) / n)}) end at the output limit: as scored "
        f"{percent(correct / n)}, "
        f"on completed answers {'none' if completed is None else percent(completed)}, "
        f"the truth between {percent(correct / n)} and {percent((correct + len(cut)) / n)}",
        tuple(sample.item for sample in cut),
    )


def _equal_lengths(task: Task, name: str) -> Iterator[Word]:
    lengths = [sample.generated_tokens for sample in task.samples if sample.stop in (None, "unknown")]
    if len(lengths) < _FEWEST or None in lengths or len(set(lengths)) > 1 or lengths[0] < _SHORTEST:
        return
    limits = {sample.max_tokens for sample in task.samples}
    if lengths[0] in limits or all((sample.score or 0) >= 1 for sample in task.samples):
        return
    asked = some([str(limit) for limit in limits if limit is not None]) or "not recorded"
    yield Found(name, f"all {len(lengths)} answers have exactly {lengths[0]} tokens; the limit asked for is {asked}")
